"""Traces: every sample is written with its verdict; difficulty follows the share solved."""

import json

import numpy as np
import pytest

from hrsa_jax.models.generate import Samples
from hrsa_jax.reasoning import traces
from hrsa_jax.reasoning.tasks import make_problems
from hrsa_jax.runtime.errors import InputError


def test_rows_follow_from_the_samples(decoder, tokenizer, tmp_path, monkeypatch):
    problems = make_problems("chain_sum", 3, seed=0)
    solved = [(1, 1, 1, 1), (1, 0, 1, 0), (0, 0, 0, 1)]  # of four samples each
    texts = [problem.answer if right else "no" for problem, row in zip(problems, solved, strict=True) for right in row]

    def sampler(decoder, ids, **options):
        assert len(ids) == 12
        assert ids[0] == ids[3] != ids[4]
        tokens = [tokenizer(" " + text + "\n", add_special_tokens=False)["input_ids"] for text in texts]
        return Samples(tokens, [], np.zeros(12, bool))

    monkeypatch.setattr(traces, "generate_tokens", sampler)
    path = tmp_path / "traces.jsonl"
    rows = traces.write_traces(path, decoder, tokenizer, problems, traces.TraceConfig(samples=4))
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    assert [row["difficulty"] for row in rows[::4]] == ["easy", "moderate", "hard"]
    assert [row["correct"] for row in rows] == [bool(right) for row in solved for right in row]
    assert rows[0]["text"] == f"{problems[0].question}\n{problems[0].answer}"
    assert rows[0]["label"] == "easy"
    assert rows[5]["solution"] == "no"
    assert rows[5]["length"] == 4
    found = traces.summary(rows)
    assert found["difficulty"] == {"easy": 4, "hard": 4, "moderate": 4}
    assert found["correct"] == 7 / 12


def test_settings_that_say_nothing_are_refused():
    with pytest.raises(InputError, match="hard <= easy"):
        traces.TraceConfig(easy=0.2, hard=0.5)
