"""Several studies side by side: Holm over the rows, words that only weaken, and what may not be compared."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from make_results import make_results
from scipy import stats

from hrsa_jax.report import reading, studies, studies_page, verdict
from hrsa_jax.report.phrases import points

_TWO = ["Lee50STS", "DjangoBitextMining"]
CASES = {"sft": "no_advantage", "rlvr": "advantage", "full": "inconclusive_three_seeds"}


def _made(**cases: str) -> dict[str, dict[str, Any]]:
    out = {}
    for name, case in cases.items():
        results = make_results(case, layers=3)
        results["demonstration"] = False
        results["models"]["reasoning"]["fingerprint"] = name
        out[name] = results
    return out


@pytest.fixture(scope="module")
def compared() -> studies.Studies:
    return studies.compare(_made(**CASES))


def test_each_row_is_its_study(compared: studies.Studies) -> None:
    for row, (name, results) in zip(compared.rows, _made(**CASES).items(), strict=True):
        estimate, low, high, margin = verdict.effect(results)
        assert (row.name, row.estimate, row.low, row.high, row.margin) == (name, estimate, low, high, margin)
        assert row.word == verdict.verdict_word(results)[0]
        assert row.reasoning_Emb - row.base_Emb == pytest.approx(estimate / 100)
        assert np.mean(row.seed_means) == pytest.approx(estimate)
        assert len(row.seeds) == 3
    assert compared.warnings == ()


def test_p_values_agree_with_the_interval_and_with_scipy() -> None:
    results = make_results("advantage", layers=3)
    results["null_effect"].pop("df", None)
    found = reading.differences(results)
    assert found is not None
    d_T = found.d_TS.mean(axis=1)
    mean, error = d_T.mean(), d_T.std(ddof=1) / math.sqrt(len(d_T))
    for df in (6.0, 4.2):
        half = stats.t.ppf(0.95, df) * error
        results["null_effect"] |= {"estimate": mean, "interval90": [mean - half, mean + half], "df": df}
        row = studies.compare({"a": results}).rows[0]
        assert row.p == pytest.approx(2 * stats.t.sf(mean / error, df))
        assert row.equivalence_p == pytest.approx(stats.t.sf((1.0 - mean) / error, df))
    results["null_effect"] |= {"interval90": [0.0, 2 * mean]}  # an interval that just touches 0 at 90%
    assert studies.compare({"a": results}).rows[0].p == pytest.approx(0.10)


@pytest.mark.parametrize(("estimate", "half"), [(0.3, 0.29), (-0.6, 0.55), (0.0, 0.98), (0.2, 0.75)])
def test_a_bare_claim_does_not_survive_twenty_pairs(estimate: float, half: float) -> None:
    family = _made(weak="no_advantage", **{f"other{i}": "inconclusive_three_seeds" for i in range(19)})
    weak = family["weak"]["null_effect"]
    margin = 0.2 if half < 0.6 else 1.0
    weak |= {"estimate": estimate, "interval90": [estimate - half, estimate + half], "df": 8.0, "margin": margin}
    weak["word"] = ""
    alone = studies.compare({"weak": family["weak"]}).rows[0]
    assert alone.corrected == alone.word  # one study: the correction changes nothing
    assert alone.word.split(" ")[0].rstrip(";") in ("no", "advantage", "disadvantage")
    row = studies.compare(family).rows[0]
    assert row.word == alone.word
    assert row.corrected == studies.WEAKENED + verdict.UNSHOWN
    assert "Alone, uncorrected, the study says" in studies_page.sentence(row)


def test_correction_never_strengthens_a_word() -> None:
    family = _made(one="quickstart", two="advantage", three="inconclusive_three_seeds")
    family |= {case: make_results(case, layers=3) for case in ("bare", "broken_parts")}
    rows = {row.name: row for row in studies.compare(family).rows}
    assert rows["one"].p < 0.01  # one seed, and an interval far from 0
    assert rows["one"].corrected.startswith("inconclusive")
    assert rows["three"].corrected == rows["three"].word
    for row in rows.values():
        assert row.corrected in (row.word, studies.WEAKENED, studies.WEAKENED + verdict.UNSHOWN)
        assert not row.p_holm < row.p
        assert not row.equivalence_p_holm < row.equivalence_p


def test_a_study_without_benchmark_has_no_verdict_and_no_p() -> None:
    family = _made(sft="no_advantage", none="advantage")
    family["none"] |= {"benchmark": [], "null_effect": None}
    found = studies.compare(family)
    assert found.rows[1].corrected == "not measured"
    assert math.isnan(found.rows[1].p_holm)
    assert found.rows[0].p_holm == found.rows[0].p  # a family of one
    assert any("No p value for none" in text for text in found.warnings)
    assert "not measured" in studies_page.sentence(found.rows[1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["null_effect"].update(margin=0.5), "Other margin: a 1.0, b 0.5"),
        (lambda r: r["config"]["convert"]["recipe"].update(steps=9), "Other conversion recipe: recipe.steps a 20, b 9"),
        (lambda r: r["config"]["benchmark"].update(suite="mteb"), "Other benchmark suite: suite a offline, b mteb"),
        (lambda r: r["config"]["hrsa"].update(preset="paper"), "Other HRSA setting: preset a careful, b paper"),
        (lambda r: r["models"]["base"].update(fingerprint="f0"), "Other base model: "),
        (lambda r: r["null_effect"].update(tasks=_TWO), "Other tasks: a not stated, b 2 of them"),
        (lambda r: r.update(demonstration=True), "Demonstration mixed in: b;"),
        (lambda r: r["models"]["reasoning"].update(fingerprint="a"), "a and b are studies of the same two backbones"),
        (lambda r: r["null_effect"].update(word="advantage"), 'b: The stored verdict "advantage" does not follow'),
    ],
)  # fmt: skip
def test_what_may_not_be_compared_is_said(change: Any, said: str) -> None:
    family = _made(a="no_advantage", b="no_advantage")
    for results in family.values():
        results["config"] = {
            "convert": {"recipe": {"steps": 20}, "seeds": [0, 1, 2]},
            "benchmark": {"suite": "offline", "margin": 1.0},
            "hrsa": {"preset": "careful"},
        }
    assert studies.compare(family).warnings == ()
    change(family["b"])
    (warning,) = studies.compare(family).warnings
    assert warning.startswith(said)


def test_other_seeds_are_said_and_settings_of_no_effect_are_not() -> None:
    family = _made(a="no_advantage", b="quickstart")
    family["a"]["config"] = {"convert": {"seeds": [0, 1, 2], "checkpoint_every": 20}}
    family["b"]["config"] = {"convert": {"seeds": [0], "checkpoint_every": 50}}
    (warning,) = studies.compare(family).warnings
    assert warning == "Other number of seeds: a 3, b 1; fewer seeds make wider intervals."


def test_similarities_are_those_of_the_last_layer(compared: studies.Studies) -> None:
    made = _made(**CASES)["rlvr"]["hrsa"]
    found = next(s for s in compared.summaries if (s.study, s.measure) == ("rlvr", "knn_10"))
    for side, pair in (("backbones", "base_vs_reasoning"), ("embeddings", "base-Emb_vs_reasoning-Emb")):
        entry = made[pair]["knn_10"]
        assert getattr(found, side) == (entry["value"][-1], *entry["interval95"][-1])
    assert found.layer == 2
    assert found.ceiling[0] == made["base-Emb_vs_base-Emb_other_seed"]["knn_10"]["value"][-1]


def test_no_verdict_without_its_interval(compared: studies.Studies) -> None:
    for row in compared.rows:
        low, high = (points(end, row.margin) for end in (row.low, row.high))
        assert f"{low} to {high}" in studies_page.sentence(row)
        assert f"[{low}, {high}]" in studies_page.headline(compared)


def test_the_table_fits_a_terminal() -> None:
    long = studies.compare({"a study whose name is much too long for it": make_results("advantage", layers=3),
                            **_made(**CASES)})  # fmt: skip
    table = studies_page.terminal_table(long)
    assert table.isascii()
    assert all(len(line) <= 80 for line in table.splitlines())
    assert "advantage*" in table
