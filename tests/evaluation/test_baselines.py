"""Encoders that know nothing: deterministic, unit length, and as good as their words."""

import numpy as np
import pytest

from hrsa_jax.evaluation.baselines import HashedBagOfWords, RandomVectors


@pytest.mark.parametrize("encoder", [HashedBagOfWords(512), RandomVectors(64)])
def test_baselines_are_deterministic_unit_float32(encoder):
    texts = ["one two three", "four", "one two three"]
    vectors = encoder.encode(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, encoder.dimension)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    np.testing.assert_array_equal(vectors, encoder.encode(texts, prompt="Instruct: anything\nQuery:\n"))


def test_bag_of_words_sees_shared_words_only():
    cat, cats, dog = HashedBagOfWords().encode(["The cat sat.", "A CAT sat down", "dogs bark loudly"])
    assert cat @ cats > 0.5
    assert abs(cat @ dog) < 0.1


def test_bag_of_words_without_a_word_is_zero():
    assert not HashedBagOfWords(16).encode(["+-*/", ""]).any()


def test_random_vectors_of_other_texts_are_nearly_orthogonal():
    vectors = RandomVectors(2048).encode([f"text {i}" for i in range(20)])
    assert np.abs(vectors @ vectors.T - np.eye(20)).max() < 0.12


@pytest.mark.parametrize("kind", [HashedBagOfWords, RandomVectors])
def test_dimension_must_be_positive(kind):
    with pytest.raises(ValueError, match="dimension"):
        kind(0)
