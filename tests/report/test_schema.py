"""results.json is read whole or refused in one sentence that names the broken part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from make_results import CASES, make_results

from hrsa_jax.report import schema
from hrsa_jax.runtime.errors import InputError


@pytest.mark.parametrize("case", CASES)
def test_every_planted_case_is_valid(case: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(make_results(case, layers=5)))
    assert schema.read(file) == schema.read(tmp_path)  # the workdir serves as well as the file


def test_nan_literals_are_read_as_missing(tmp_path: Path) -> None:
    results = make_results("quickstart", layers=3)
    results["hrsa"]["base_vs_reasoning"]["cka"]["value"][1] = float("nan")
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    assert schema.read(file)["hrsa"]["base_vs_reasoning"]["cka"]["value"][1] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no .*results.json"),
        ("", "not valid JSON"),
        ('{"schema": 1, "benchmark": [', "not valid JSON .*cut off"),
        ("[1, 2]", 'no "schema" field'),
        ('{"name": "some other program"}', 'no "schema" field'),
        ('{"schema": 2, "benchmark": []}', "has schema 2 and this version reads schema 1"),
        ('{"schema": 1, "config": {}}', "holds none of benchmark"),
        (b"\xff\xfe\x00", "cannot be read as text"),
    ],
)
def test_foreign_and_cut_files(content: str | bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        schema.read(file)
    assert "\n" not in str(caught.value)


def _set(results: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split("/")
    for name in parents:
        results = results[int(name) if name.isdigit() else name]
    results[int(last) if last.isdigit() else last] = value  # type: ignore[index]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("benchmark", {}, "benchmark is an object and should be a list"),
        ("benchmark/3", "x", r"benchmark\[3\] is a string"),
        ("benchmark/0/score", 71.3, r"benchmark\[0\].score is 71.3 .*between -1 and 1"),
        ("benchmark/0/score", "0.7", r"benchmark\[0\].score is a string"),
        ("benchmark/0/task", None, r"benchmark\[0\].task is null"),
        ("null_effect/estimate", True, "null_effect.estimate is a boolean"),
        ("null_effect/interval90", [1.0], "null_effect.interval90 .*low, high"),
        ("null_effect/interval90", [2.0, 1.0], "null_effect.interval90 runs from 2.0 down to 1.0"),
        ("reasoning/before/accuracy", "none", "reasoning.before.accuracy is a string"),
        ("training/base-Emb-s0/loss", [1.0], "training.base-Emb-s0.loss has 1 entries"),
        ("reasoning/training", {"step": [1]}, "reasoning.training.loss is null"),
        ("hrsa/base_vs_reasoning", [], "hrsa.base_vs_reasoning is a list"),
        ("hrsa/base_vs_reasoning/cka/value", [0.5], "hrsa.base_vs_reasoning.cka.value has 1 entries"),
        ("hrsa/base_vs_reasoning/cka/value/0", "high", "hrsa.base_vs_reasoning.cka.value is a string"),
        ("hrsa/base_vs_reasoning/cka/interval95", [[0, 1]], "cka.interval95 does not match its layers"),
        ("hrsa/base_vs_reasoning/cka_matrix/value", [[1.0]], "cka_matrix has 1 rows that do not fit 3 x 3|3 x 3"),
        ("realignment/cka", [1.0], "realignment.cka is a list"),
        ("null_effect/positive_control", 3.0, "null_effect.positive_control is a number"),
        ("null_effect/positive_control/interval90", [1.0, 0.0], "positive_control.interval90 runs from"),
        ("null_effect/aa/pairs/0/estimate", "x", r"aa.pairs\[0\].estimate is a string"),
        ("null_effect/power/power", "high", "null_effect.power.power is a string"),
        ("noise_floor/runs/bfloat16/cka/value", [1.0], "noise_floor.runs.bfloat16.cka.value has 1 entries"),
        ("trajectory/steps", [0, 1], "trajectory.measures.correlation.value has 5 entries"),
        ("realignment_index/knn_10", 1.0, "realignment_index.knn_10 is a number"),
        ("planted/0", "yes", r"planted\[0\] is a string"),
        ("timings", {"load": 3.0}, "timings.load is a number and should be an object"),
    ],
)
def test_broken_parts_are_named(path: str, value: Any, message: str) -> None:
    results = make_results("controlled", layers=3)
    _set(results, path, value)
    with pytest.raises(InputError, match=message):
        schema.validate(results, "results.json")
