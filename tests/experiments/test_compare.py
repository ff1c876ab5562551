"""experiments/compare.py on tiny folders: what it writes, and what bad input gets, in one sentence."""

import json

import numpy as np
import pytest
from tiny import write_model

from experiments.compare import CompareConfig, read_texts, run
from hrsa_jax.runtime.errors import InputError

WORDS = [
    "the",
    "sum",
    "of",
    "two",
    "numbers",
    "is",
    "an",
    "answer",
    "that",
    "return",
    "self",
    "value",
    "def",
    "in",
    "list",
]


def write_texts(path, count=24):
    random = np.random.default_rng(0)
    rows = [
        {
            "text": " ".join(random.choice(WORDS, 9)),
            "topic": ("maths", "code")[i % 2],
            "level": ("easy", "hard")[i // 2 % 2],
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return [str(write_model(place / f"m{seed}", seed=seed)) for seed in range(3)]


@pytest.mark.slow
def test_everything_a_config_can_ask_for(folders, tmp_path, capsys):
    config = {
        "a": folders[0], "b": folders[1], "texts": write_texts(tmp_path / "texts.jsonl"), "label_field": "topic",
        "breakdown_field": "level", "max_texts": 20, "max_tokens": 12, "noise_floor": True,
        "backbones": (folders[0], folders[2]), "ceiling": (folders[1], folders[1]), "trajectory": tuple(folders[1:]),
    }  # fmt: skip
    assert run(config, str(tmp_path / "out"), command="python launch.py") == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"comparison", "breakdown", "noise_floor", "trajectory", "realignment", "realignment_index"} <= set(results)
    assert {"correlation", "cka", "knn_5", "probe_transfer"} <= set(results["comparison"])
    assert set(results["breakdown"]) == {"easy", "hard", "notes"}
    assert set(results["trajectory"]) == set(folders[1:])
    rows = {results["comparison"]["facts"]["rows"], results["backbones"]["facts"]["rows"]}
    assert len(rows) == 1  # all pairs on the same rows
    assert results["realignment_index"]["cka"]["value"][1] <= 1
    for name in ("comparison.svg", "trajectory.svg"):
        assert (tmp_path / "out" / name).stat().st_size > 5000
    assert not (tmp_path / "out" / "activations").exists()
    shown = capsys.readouterr()
    printed = shown.out + shown.err
    for words in ("probe_transfer", "level = hard", "noise floor of a: bfloat16", "snapshot", "realignment index"):
        assert words in printed, words


def test_files_of_activations_need_no_texts(tmp_path):
    random = np.random.default_rng(0)
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", random.standard_normal((2, 40, 6)).astype(np.float32))
    config = {"a": str(tmp_path / "a.npy"), "b": str(tmp_path / "b.npy"), "preset": "paper"}
    assert run(config, str(tmp_path / "out"), command="") == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["comparison"]["facts"]["preset"] == "paper"
    assert len(results["comparison"]["cka_biased"]["value"]) == 2


@pytest.mark.parametrize(
    ("content", "config", "words"),
    [
        ('{"text": "a"}\n{"text": \n', {}, r":2 is not valid JSON"),
        ('{"text": "a"}\n{"body": "b"}\n', {}, r":2 has no usable field 'text'"),
        ('{"text": ""}\n', {}, ":1 has no usable field"),
        ('{"text": "a"}\n', {"label_field": "topic"}, r":1 has no usable field 'topic'"),
        (None, {}, "texts.jsonl cannot be read .No such file"),
    ],
)
def test_bad_texts_are_named_by_file_and_line(tmp_path, content, config, words):
    path = tmp_path / "texts.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=words):
        read_texts(CompareConfig("a", "b", texts=str(path), **config))


def test_plain_lines_are_texts_and_have_no_fields(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("one line\n\nanother\n")
    assert read_texts(CompareConfig("a", "b", texts=str(path))).texts == ["one line", "another"]
    with pytest.raises(InputError, match="have no fields"):
        read_texts(CompareConfig("a", "b", texts=str(path), label_field="topic"))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "config.texts is missing"),
        ({"texts": "t", "ceiling": ("x",)}, "config.ceiling names 1 models"),
        ({"texts": "t", "ceiling": ("x", "y")}, "without config.backbones"),
        ({"texts": "t", "max_texts": 3}, "at least 8 texts"),
    ],
)
def test_bad_settings_are_one_sentence(config, words):
    with pytest.raises(InputError, match=words):
        CompareConfig("a", "b", **config)
