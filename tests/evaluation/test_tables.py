"""Means without gaps, differences, languages, published scores and the printed table."""

import json

import numpy as np
import pytest

from hrsa_jax.evaluation.runner import TaskScore
from hrsa_jax.evaluation.tables import comparison_table, difference_table, language_means, means, read_published
from hrsa_jax.runtime.errors import InputError


def score(task, kind, value, languages=()):
    return TaskScore(task, kind, "m", value, 1.0, languages=languages)


def test_means_by_task_and_by_type():
    scores = [score("a", "STS", 0.2), score("b", "STS", 0.4), score("c", "Retrieval", 0.9), score("x", "STS", 0.0)]
    found = means(scores, ["a", "b", "c"])
    assert found["by_task"] == pytest.approx(0.5)
    assert found["by_type"] == pytest.approx(0.6)
    assert found["types"] == pytest.approx({"STS": 0.3, "Retrieval": 0.9})


def test_a_missing_task_is_an_error_that_names_it():
    scores = [score("a", "STS", 0.2), score("b", "STS", None)]
    with pytest.raises(InputError, match="no score for b, c"):
        means(scores, ["a", "b", "c"])
    with pytest.raises(InputError, match="any of them"):
        means([], [])


def test_difference_table_is_in_points_and_refuses_gaps():
    base = {s: [score("a", "STS", 0.5), score("b", "STS", 0.1 * s)] for s in (0, 1)}
    reasoning = {s: [score("b", "STS", 0.1 * s), score("a", "STS", 0.51 + 0.01 * s)] for s in (0, 1)}
    np.testing.assert_allclose(difference_table(base, reasoning, ["a", "b"]), [[1, 2], [0, 0]], atol=1e-9)
    with pytest.raises(InputError, match="reasoning with seed 1 has no score for c"):
        difference_table({1: [score("c", "STS", 0.1)]}, {1: [score("a", "STS", 0.1)]}, ["c"])
    with pytest.raises(InputError, match="seeds"):
        difference_table(base, {0: reasoning[0]}, ["a"])


def test_languages_are_averaged_over_subsets_and_translations_count_for_the_other_language():
    scores = [
        score("a", "STS", 0.3, (("en", ("eng-Latn",), 0.2), ("de", ("deu-Latn",), 0.4))),
        score("b", "BitextMining", 0.8, (("de", ("eng-Latn", "deu-Latn"), 0.8),)),
    ]
    assert language_means(scores) == {"deu": (pytest.approx(0.6), 2), "eng": (0.2, 1)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.json", json.dumps({"org/m": {"SciFact": 71.5, "NQ": 60}})),
        ("s.json", json.dumps({"org/m": {"SciFact": 0.715, "NQ": 0.6}})),
        ("s.csv", "model,SciFact,NQ\norg/m,71.5,60\n"),
        ("s.csv", "model,task,score\norg/m,SciFact,71.5\norg/m,NQ,60\n"),
    ],
)
def test_published_scores_in_every_form_are_the_same(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_published(tmp_path / name) == {"org/m": pytest.approx({"SciFact": 0.715, "NQ": 0.6})}


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("s.txt", "", "give a .json or .csv file"),
        ("s.json", "{", "not in a known form"),
        ("s.json", "[1]", "not in a known form"),
        ("s.csv", "task,score\na,1\n", "not in a known form"),
        ("s.csv", "model,task,score\nm,a,high\n", "not in a known form"),
        ("s.json", '{"m": {"a": 1000}}', "between 0 and 1"),
        ("s.json", '{"m": {"a": NaN}}', "between 0 and 1"),
        ("s.json", "{}", "between 0 and 1"),
    ],
)
def test_bad_published_scores_give_one_sentence(tmp_path, name, text, why):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=why) as caught:
        read_published(tmp_path / name)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_published(tmp_path / "none.json")


def test_the_table_shows_gaps_instead_of_averaging_them_away():
    ours = {"base": [score("a", "STS", 0.5), score("b", "STS", 0.25)], "other": [score("a", "STS", 0.75)]}
    lines = comparison_table(ours, {"org/m": {"a": 0.61, "b": 0.3}}, ["a", "b"]).splitlines()
    assert lines[0].split() == ["task", "base", "other", "org/m", "*"]
    assert lines[1].split() == ["a", "50.00", "75.00", "61.00"]
    assert lines[2].split() == ["b", "25.00", "-", "30.00"]
    assert "37.50" in lines[3]
    assert "1 missing" in lines[3]
    assert lines[4].startswith("* published")
