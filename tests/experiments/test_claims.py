"""The paper's claims by fixed rules: planted results get the word that they deserve."""

import json

import pytest

from experiments import claims
from experiments.claims import FAILS, HOLDS, MISSING, UNCLEAR
from hrsa_jax.runtime.errors import InputError

LAYERS = list(range(11))


def curve(value, half=0.01):
    """The same value and interval in all layers but h_0, which is 1."""
    values = [1.0] + [value] * 10
    return {"layers": LAYERS, "value": values, "interval95": [[v - half, v + half] for v in values]}


def study(*, word="no advantage (equivalent within 1.0)", method="grpo", gap=0.1, drift=0.5, cka=0.99, knn=0.6):
    pair = {
        **{"cka": curve(cka), "knn_10": curve(knn), "correlation": curve(drift)},
        **{"probe_transfer": curve(0.8), "probe_target": curve(0.82)},
    }
    return {
        "schema": 1,
        "reasoning": {"method": method},
        "null_effect": {"estimate": 0.1, "interval90": [-0.5, 0.7], "margin": 1.0, "word": word},
        "hrsa": {"base_vs_reasoning": pair, "base-Emb_vs_reasoning-Emb": pair},
        "realignment": {name: curve(gap) for name in ("correlation", "cka", "knn_10")},
        "noise_floor": {"model": "base", "runs": {"bfloat16": {"knn_10": curve(0.9), "correlation": curve(0.98)}}},
    }


def words(results):
    return [finding.word for finding in claims.claims("a", results)]


def test_what_the_paper_says_holds_where_it_was_planted():
    assert words(study()) == [HOLDS] * 9


def test_the_opposite_does_not_hold_and_an_unclear_one_cannot_tell():
    opposite = study(word="advantage", gap=-0.1, drift=1.0, cka=0.5, knn=0.95)
    null, geometry, neighbours, drift, reversed_, *_ = words(opposite)
    assert (null, geometry, neighbours, drift) == (FAILS,) * 4
    assert reversed_ == UNCLEAR  # there was no drift that conversion could reverse
    wide = study(word="inconclusive (needs about 30 tasks or 9 seeds)")
    for pair in (*wide["hrsa"].values(), wide["realignment"]):
        for measure in pair.values():
            measure["interval95"] = [[0.0, 1.0] if layer % 3 else [v, v] for layer, v in enumerate(measure["value"])]
            measure["value"] = [0.5] * 11
    assert set(words(wide)[:2]) == {UNCLEAR}
    assert UNCLEAR in words(wide)[7:]


def test_an_advantage_that_does_not_survive_holm_cannot_refute_the_claim():
    [alone, *_] = claims.claims("a", study(word="advantage"))
    [corrected, *_] = claims.claims("a", study(word="advantage"), "inconclusive after Holm's correction")
    assert (alone.word, corrected.word) == (FAILS, UNCLEAR)
    assert 'inconclusive after Holm\'s correction (alone, uncorrected: "advantage")' in corrected.found
    assert "alone" not in alone.found
    assert max(map(len, claims.finding_text(corrected).splitlines())) <= 80


def test_what_was_not_measured_is_said_to_be_missing():
    results = study()
    del results["noise_floor"]
    results["hrsa"]["base_vs_reasoning"].pop("probe_transfer")
    found = {finding.claim: finding for finding in claims.claims("a", results)}
    assert [f.word for name, f in found.items() if "k-NN" in name or "basis (corr" in name] == [MISSING, MISSING]
    assert found["a linear readout carries over: backbones"].word == MISSING


def test_sft_is_compared_with_rlvr_layer_by_layer():
    pairs = {"s": study(method="sft", cka=0.8, knn=0.6, drift=0.9), "r": study(cka=0.99, knn=0.6, drift=0.5)}
    by_measure = {f.claim.rpartition(": ")[2]: f.word for f in claims.sft_restructures_more(pairs)}
    assert by_measure == {"cka": HOLDS, "knn_10": UNCLEAR, "correlation": FAILS}
    assert claims.sft_restructures_more({"s": pairs["s"]}) == []


def test_the_share_of_bfloat16_in_the_gap_is_what_was_planted():
    results = study(knn=0.6)
    results["hrsa"]["base-Emb_vs_base-Emb_other_seed"] = {"cka": curve(0.9)}
    by_question = {f.question: f for f in claims.figures("a", results)}
    assert by_question["CKA, sinks left out, different texts"].seeds == pytest.approx(0.9)
    assert by_question["correlation by dimension"].seeds is None
    share = by_question["share of the k-NN gap that bfloat16 alone makes in the base"]
    assert share.backbones == pytest.approx(0.1 / 0.4)
    assert by_question["k-NN overlap, k = 10"].embeddings == pytest.approx(0.6)


def test_the_experiment_reads_workdirs_and_writes_a_table(tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(study(method="sft" if name == "one" else "grpo")))
    config = {"studies": [f"{tmp_path / 'one'}", f"second={tmp_path / 'two'}"]}
    assert claims.run(config, str(tmp_path / "out"), command="python launch.py") == 0
    findings = json.loads((tmp_path / "out" / "claims.json").read_text())["findings"]
    assert {f["study"] for f in findings} == {"one", "second", "one, second"}
    said = capsys.readouterr()
    assert "cannot tell     one: no measurable gain (null effect)" in said.out  # no scores, so no seeds to judge by
    lines = (tmp_path / "out" / "claims.md").read_text().splitlines()
    assert len([line for line in lines if line.startswith("|")]) == 4 + len(findings) + 2 * 4
    with pytest.raises(InputError, match="two studies have one name"):
        claims.run({"studies": [str(tmp_path / "one"), f"one={tmp_path / 'two'}"]}, str(tmp_path / "b"), command="")
    with pytest.raises(InputError, match="studies is empty"):
        claims.run({"studies": []}, str(tmp_path / "c"), command="")
