"""Mining as an experiment: equal to a plain search with the same encoder, scores in the file, bounded memory."""

import json

import numpy as np
import pytest
from tiny import write_model

from experiments import mine
from hrsa_jax.data.prompts import query_prompt
from hrsa_jax.data.sources import open_jsonl
from hrsa_jax.embedding.encoder import Encoder
from hrsa_jax.runtime.errors import InputError

WORDS = ["red", "green", "blue", "old", "new", "big", "cat", "dog", "fish", "bird", "house", "tree", "road", "city"]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    write_model(folder / "model")
    random = np.random.default_rng(0)
    with (folder / "facts.jsonl").open("w") as file:
        for i in range(60):
            words = [WORDS[j] for j in random.integers(len(WORDS), size=5)]
            row = {"query": ["Find it", f"{words[0]} {i // 2}"], "pos": [" ".join(words) + f" {i}"]}
            if i % 7 == 0:
                row["pos"].append(f"another {words[1]} {i}")
            if i % 5 == 0:
                row["neg"] = [f"only a negative {i}"]
            file.write(json.dumps(row) + "\n")
    return folder


def settings(setting, **changes):
    return {
        "encoder": str(setting / "model"),
        "folder": str(setting),
        "files": ({"path": "facts.jsonl"},),
        "count": 2,
        "relative_margin": 0.0,
        "dtype": "float32",
        "block": 16,
        **changes,
    }


def run(config, path):
    assert mine.run(config, str(path), command="python launch.py") == 0
    return open_jsonl(path / "mined" / "facts.jsonl"), json.loads((path / "results.json").read_text())["files"]["facts"]


def plain_search(pairs, encoder, count, limit_of):
    """The same in a few lines, with every score in float64."""
    corpus = list(dict.fromkeys(text for pair in pairs for text in (*pair.positives, *pair.negatives)))
    vectors = encoder.encode(corpus).astype(np.float64)
    place = {text: i for i, text in enumerate(corpus)}
    queries = encoder.encode([pair.query for pair in pairs], prompt=query_prompt("Find it")).astype(np.float64)
    found = []
    for pair, query in zip(pairs, queries, strict=True):
        scores = vectors @ query
        known = {text for other in pairs if other.query == pair.query for text in other.positives}
        best = max(scores[place[text]] for text in pair.positives)
        order = sorted((i for i, text in enumerate(corpus) if text not in known), key=lambda i: (-scores[i], i))
        kept = [i for i in order[: max(count, min(100, len(corpus) // 10))] if scores[i] <= limit_of(best)][:count]
        found.append(([corpus[i] for i in kept], [scores[i] for i in kept], best))
    return found


def test_why_rows_have_no_negatives_is_said(setting, capsys):
    mined, facts = run(settings(setting, relative_margin=0.9), setting / "none")
    printed = " ".join(capsys.readouterr().out.split())
    assert facts["without negatives"] == sum(not pair.negatives for pair in mined) > 30
    assert f"{facts['without negatives']} of 60 rows have no negative: of the" in printed
    assert "by 90% of its score are left out" in printed
    _, facts = run(settings(setting, last_rank=100), setting / "some")
    assert facts["without negatives"] < 30
    assert "have no negative" not in capsys.readouterr().out


def test_what_is_mined_equals_a_plain_search(setting):
    pairs = list(open_jsonl(setting / "facts.jsonl"))
    mined, facts = run(settings(setting), setting / "plain")
    expected = plain_search(pairs, Encoder(str(setting / "model"), dtype="float32"), 2, lambda best: best)
    assert len(mined) == facts["written"] == 60
    for pair, before, (texts, scores, best) in zip(mined, pairs, expected, strict=True):
        assert (pair.query, pair.positives, pair.instruction) == (before.query, before.positives, before.instruction)
        assert list(pair.negatives) == texts
        np.testing.assert_allclose(pair.negative_scores, scores, atol=1e-6)
        assert max(pair.positive_scores) == pytest.approx(best, abs=1e-6)
        assert len(pair.positive_scores) == len(pair.positives)
    assert not list((setting / "plain").rglob("passages.npy"))


def test_rows_are_dropped_only_when_told_to_and_the_filter_keeps_its_side(setting):
    plain, _ = run(settings(setting), setting / "plain")
    strict = float(
        np.median([1 - pair.negative_scores[0] / max(pair.positive_scores) for pair in plain if pair.negatives])
    )
    rule = {"relative_margin": strict, "last_rank": 2}
    everything, facts = run(settings(setting, **rule), setting / "all")
    short = sum(len(pair.negatives) < 2 for pair in everything)
    assert 0 < short < 60
    assert facts["written"] == 60
    _, facts = run(settings(setting, **rule, least_negatives=2), setting / "dropped")
    assert facts["too few negatives"] == short
    assert facts["written"] == 60 - short
    gaps = [max(pair.positive_scores) - max(pair.negative_scores) for pair in plain if pair.negatives]
    middle = float(np.median(gaps))
    kept, facts = run(settings(setting, margin_at_least=middle), setting / "filtered")
    assert len(kept) == facts["written"] == sum(gap >= middle for gap in gaps)
    assert all(max(pair.positive_scores) - max(pair.negative_scores) >= middle for pair in kept)


def test_a_finished_file_is_not_mined_again_and_wrong_settings_are_refused(setting):
    run(settings(setting), setting / "plain")
    marker = setting / "plain" / "stages" / "mine" / "facts" / "done.json"
    before = marker.stat().st_mtime_ns
    run(settings(setting), setting / "plain")
    assert marker.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="count is 0"):
        run(settings(setting, count=0), setting / "refused")
