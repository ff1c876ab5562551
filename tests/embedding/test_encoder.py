"""The encoder: equal to encoding each text alone, whatever it is packed with; refusals; compiled once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hrsa_jax.data.prompts import PAPER_TEMPLATE, QUERY_TEMPLATE, query_prompt
from hrsa_jax.embedding import encoder as encoder_module
from hrsa_jax.embedding.encoder import Encoder
from hrsa_jax.embedding.pooling import POOLINGS, pool
from hrsa_jax.models.sentence_transformers_files import EmbeddingSettings
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.mesh import make_mesh

PROMPT = query_prompt("Find the animal")


def alone(backbone, text, how, attention, prompt=""):
    """One text, unpacked, unpadded: hidden states of all layers pooled from the first token past the prompt."""
    encoding = backbone.tokenizer(prompt + text, return_offsets_mapping=True)
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    start = next((i for i, (_, end) in enumerate(offsets) if end > len(prompt)), 0) if prompt else 0
    ids, mask = np.array([ids]), np.ones((1, len(ids)), bool)
    states = backbone.hidden_states(ids, mask, attention=attention)
    return np.stack([pool(h, mask, how, pool_mask_BT=np.arange(ids.shape[1])[None] >= start)[0] for h in states])


@pytest.mark.parametrize("how", POOLINGS)
def test_packed_encoding_equals_one_text_at_a_time(backbone, texts, how):
    attention = "causal" if how == "last" else "bidirectional"
    encoder = Encoder(backbone, attention=attention, pooling=how, normalize=False)
    for prompt in ("", PROMPT):
        expected = np.stack([alone(backbone, text, how, attention, prompt) for text in texts], axis=1)
        np.testing.assert_allclose(encoder.hidden(texts, prompt), expected, rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(encoder.encode(texts, prompt), expected[-1], rtol=1e-4, atol=2e-5)


def test_order_duplicates_length_and_type(backbone, texts):
    encoder = Encoder(backbone)
    vectors = encoder.encode(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(texts), encoder.dimension) == (8, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    order = [3, 3, 0, 7, 3]
    np.testing.assert_allclose(encoder.encode([texts[i] for i in order]), vectors[order], atol=1e-6)
    assert encoder.encode([]).shape == (0, 32)
    assert encoder.hidden([]).shape == (3, 0, 32)


def test_long_and_short_texts_share_rows_of_several_lengths(backbone, texts):
    mixed = [text * repeat for text in texts for repeat in (1, 15)]
    encoder = Encoder(backbone, attention="bidirectional", max_length=300, batch_tokens=512)
    lengths = encoder._tokenize(mixed, "").lengths
    assert lengths.max() == 300
    got = encoder.encode(mixed)
    single = np.concatenate([encoder.encode([text]) for text in mixed[::3]])
    np.testing.assert_allclose(got[::3], single, atol=2e-6)


def test_the_first_word_is_pooled_and_the_instruction_only_seen_by_attention(build_backbone):
    """With attention switched off, a vector depends on the query's words and not on the instruction."""
    backbone = build_backbone()
    deaf = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0 if "o_proj" in jax.tree_util.keystr(path) else leaf, backbone.decoder
    )
    for template in (QUERY_TEMPLATE, PAPER_TEMPLATE):
        one, other = query_prompt("Find the animal", template), query_prompt("Name a city", template)
        encoder = Encoder(backbone.with_decoder(deaf, "deaf"))
        fox = encoder.encode(["fox jumps"], one)
        np.testing.assert_allclose(encoder.encode(["fox jumps"], other), fox, atol=1e-6)
        assert float((encoder.encode(["dog jumps"], one) @ fox.T).item()) < 0.99
        hearing = Encoder(backbone)
        assert np.abs(hearing.encode(["fox jumps"], one) - hearing.encode(["fox jumps"], other)).max() > 1e-3


def test_attention_modes_differ_as_they_should(backbone):
    short, long = "the quick brown fox", "the quick brown fox jumps over the lazy dog"
    for attention, changes in (("causal", False), ("bidirectional", True)):
        encoder = Encoder(backbone, attention=attention, pooling="cls")
        difference = np.abs(encoder.encode([short]) - encoder.encode([long])).max()
        assert (difference > 1e-3) == changes


def test_a_second_model_of_the_same_shape_compiles_nothing(build_backbone, texts):
    Encoder(build_backbone(seed=1)).encode(texts)
    before = encoder_module._pooled_rows._cache_size()
    one = Encoder(build_backbone(seed=2)).encode(texts)
    assert encoder_module._pooled_rows._cache_size() == before
    assert np.abs(one - Encoder(build_backbone(seed=1)).encode(texts)).max() > 0.01


def test_bfloat16_is_close(backbone, texts):
    exact, low = Encoder(backbone).encode(texts), Encoder(backbone, dtype="bfloat16").encode(texts)
    assert low.dtype == np.float32
    assert (exact * low).sum(1).min() > 0.995


def test_sharded_weights_and_rows(build_backbone, texts):
    backbone = build_backbone()
    mesh = make_mesh(data=4, fsdp=2)
    spread = jax.device_put(backbone.decoder, jax.NamedSharding(mesh, jax.P()))
    got = Encoder(backbone.with_decoder(spread, "spread"), batch_tokens=2048).encode(texts)
    np.testing.assert_allclose(got, Encoder(backbone).encode(texts), atol=2e-6)


def test_stored_settings_are_used(backbone, texts):
    stored = EmbeddingSettings(
        pooling="last",
        normalize=False,
        prompts={"query": PROMPT},
        max_length=64,
        include_prompt=True,
        default_prompt="query",
    )
    encoder = Encoder(dataclasses.replace(backbone, embedding=stored))
    assert (encoder.pooling, encoder.normalize, encoder.max_length) == ("last", False, 64)
    np.testing.assert_array_equal(encoder.encode(texts), encoder.encode(texts, PROMPT))
    assert np.abs(encoder.encode(texts, "") - encoder.encode(texts)).max() > 1e-3
    plain = Encoder(backbone, pooling="mean", normalize=False, max_length=64)
    pooled_too = dataclasses.replace(stored, pooling="mean")
    with_prompt = Encoder(dataclasses.replace(backbone, embedding=pooled_too)).encode(["fox"])
    np.testing.assert_allclose(with_prompt, plain.encode([PROMPT + "fox"]), atol=1e-5)


def test_fingerprint_changes_with_what_changes_the_vectors(backbone, build_backbone):
    variants = [
        Encoder(backbone),
        Encoder(backbone, attention="bidirectional"),
        Encoder(backbone, pooling="last"),
        Encoder(backbone, max_length=64),
        Encoder(backbone, normalize=False),
        Encoder(build_backbone(seed=5)),
    ]
    assert len({encoder.fingerprint for encoder in variants}) == len(variants)
    assert Encoder(backbone, batch_tokens=256).fingerprint == variants[0].fingerprint
    assert len(variants[0].fingerprint) == 16


def test_empty_texts(backbone, build_backbone):
    with pytest.raises(InputError, match=r"Text 1 \(''\) has no tokens"):
        Encoder(backbone).encode(["fox", "", ""])
    lenient = Encoder(backbone, allow_empty=True).encode(["fox", ""])
    assert not lenient[1].any()
    assert lenient[0].any()
    assert Encoder(build_backbone(eos=True)).encode([""]).any()  # here the closing token is pooled


def test_refusals(backbone, build_backbone, texts):
    with pytest.raises(InputError, match="Text 1 is a int"):
        Encoder(backbone).encode(["fox", 3])
    with pytest.raises(InputError, match=r"write \[text\]"):
        Encoder(backbone).encode("fox")
    with pytest.raises(InputError, match="Pooling 'max'"):
        Encoder(backbone, pooling="max")
    with pytest.raises(InputError, match="exceeds the 512 positions"):
        Encoder(backbone, max_length=513)
    broken = build_backbone().decoder
    token = backbone.tokenizer("x")["input_ids"][0]
    assert [token in ids for ids in backbone.tokenizer(texts)["input_ids"]].index(True) == 4
    broken.embed[...] = broken.embed[...].at[token].set(jnp.nan)
    with pytest.raises(InputError, match=r"NaN or infinite values for text 4 \('x'\)"):  # and not its row's first
        Encoder(backbone.with_decoder(broken, "broken")).encode(texts)
