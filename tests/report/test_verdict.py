"""The words on planted results: what may be said, what must be said, and never a claim without its interval."""

from __future__ import annotations

import math
import re

import pytest
from make_results import CASES, make_results

from hrsa_jax.report import inside, lowered, reading, verdict
from hrsa_jax.report.phrases import points


@pytest.mark.parametrize(
    ("case", "word"),
    [
        ("quickstart", "inconclusive"),
        ("no_advantage", "no advantage (equivalent within 1); sensitivity not shown"),
        ("advantage", "advantage; sensitivity not shown"),
        ("disadvantage", "disadvantage; sensitivity not shown"),
        ("controlled", "no advantage (equivalent within 1)"),
        ("blind_control", "no advantage (equivalent within 1); sensitivity not shown"),
        ("inconclusive_three_seeds", "inconclusive (needs about 41 tasks or 6 seeds); sensitivity not shown"),
    ],
)
def test_the_word(case: str, word: str) -> None:
    summary = verdict.summary(make_results(case, layers=3))
    assert summary.word == word
    assert word.split(" (")[0] in summary.paragraphs[0].answer


def test_one_seed_is_inconclusive_whatever_is_stored() -> None:
    results = make_results("quickstart", layers=3)
    estimate, low, _, _ = verdict.effect(results)
    assert low > 0  # an interval that would be an advantage
    assert estimate > 0
    results["null_effect"]["word"] = "advantage"
    summary = verdict.summary(results)
    assert summary.word == "inconclusive"
    assert summary.headline.startswith("This study cannot say")
    assert any("one seed" in text for text in summary.warnings)
    assert "two seeds at the least, three are better" in summary.paragraphs[3].answer
    results["null_effect"]["word"] = "inconclusive (needs about 12 tasks or 3 seeds); sensitivity not shown"
    summary = verdict.summary(results)
    assert summary.warnings == ()
    assert summary.text().startswith("Verdict: inconclusive; sensitivity not shown.\n")
    assert "(needs" not in summary.text()  # one seed says nothing of how far seeds differ
    assert "80% power" not in summary.text()
    assert "how many it would take cannot be said" in summary.paragraphs[3].answer


def test_a_stored_word_that_contradicts_its_interval_is_not_repeated() -> None:
    results = make_results("no_advantage", layers=3)
    results["null_effect"]["word"] = "advantage"
    summary = verdict.summary(results)
    assert summary.word.startswith("no advantage")
    assert any("does not follow from its interval" in text for text in summary.warnings)


def test_interval_exactly_at_the_margin_is_equivalent() -> None:
    results = make_results("no_advantage", layers=3)
    results["null_effect"] |= {"estimate": 0.5, "interval90": [0.0, 1.0], "word": ""}
    assert verdict.verdict_word(results)[0].startswith("no advantage")


@pytest.mark.parametrize("case", CASES)
def test_no_claim_without_its_interval(case: str) -> None:
    summary = verdict.summary(make_results(case, layers=7))
    assert re.search(r"90% interval [+-][\d.]+ to [+-][\d.]+", summary.headline)
    for paragraph in summary.paragraphs[1:3]:
        claims = [*paragraph.numbers, *re.findall(r"\((?:CKA|10-NN)[^)]*", paragraph.answer)]
        if "Not measured" in paragraph.answer:
            assert not claims
        else:
            assert claims
        for claim in claims:
            assert re.search(r"\[[-+\d.]+, [-+\d.]+\]|no interval|not measured", claim), claim


def test_a_failed_variant_is_said_to_have_failed() -> None:
    summary = verdict.summary(make_results("quickstart", layers=3))
    assert "accuracy did not rise significantly" in summary.paragraphs[0].answer
    risen = verdict.summary(make_results("advantage", layers=3))
    assert "did not rise" not in risen.text()
    assert not verdict.variant_failed(make_results("advantage", layers=3))


def test_a_variant_that_fell_or_was_not_measured_has_not_risen() -> None:
    results = make_results("quickstart", layers=3)
    for label in ("accuracy fell significantly (Wilson intervals disjoint)", "not measured by this run"):
        results["reasoning"]["label"] = label
        assert verdict.variant_failed(results)
        assert label in verdict.summary(results).paragraphs[0].answer
    results["reasoning"]["label"] = "accuracy rose significantly (Wilson intervals disjoint)"
    assert not verdict.variant_failed(results)


def test_an_unlabelled_variant_is_judged_by_its_counts() -> None:
    results = make_results("quickstart", layers=3)
    del results["reasoning"]["label"]
    assert verdict.variant_failed(results)  # 0 of 40 against 2 of 40
    assert verdict.variant_label(results) == "accuracy did not rise significantly"
    results["reasoning"]["after"]["accuracy"] = 0.4
    assert not verdict.variant_failed(results)
    del results["reasoning"]["before"]
    assert verdict.variant_failed(results)  # nothing shown is not shown
    assert "not measured" in verdict.variant_label(results)


def test_demonstration_label_is_part_of_the_answer() -> None:
    results = make_results("no_advantage", layers=3)
    assert "not evidence about reasoning models in general" in verdict.summary(results).paragraphs[0].answer
    results["demonstration"] = False
    assert "not evidence" not in verdict.summary(results).text()


def test_missing_parts_are_stated() -> None:
    summary = verdict.summary(make_results("bare", layers=3))
    assert summary.paragraphs[1].answer.startswith("Not measured")
    assert summary.paragraphs[2].answer.startswith("Not measured")
    broken = verdict.summary(make_results("broken_parts", layers=31))
    assert any("no score for Lee50STS" in text and "mean is not shown" in text for text in broken.warnings)


def test_no_benchmark_means_no_verdict() -> None:
    results = make_results("quickstart", layers=3)
    del results["null_effect"]
    results["benchmark"] = []
    summary = verdict.summary(results)
    assert summary.word == "not measured"
    assert "no benchmark verdict" in summary.headline
    assert verdict.terminal_table(results) == "No benchmark scores.\n"


def test_realignment_direction_of_distances_and_similarities() -> None:
    results = make_results("quickstart", layers=7)
    text = verdict.summary(results).paragraphs[2].answer
    assert re.search(r"more alike by [^;]*rotation residual", text)  # a falling residual is more alike
    gap = results["realignment"]["procrustes_residual"]
    gap["value"] = [-value for value in gap["value"]]
    gap["interval95"] = [[-high, -low] for low, high in gap["interval95"]]
    assert re.search(r"less alike by rotation residual", verdict.summary(results).paragraphs[2].answer)
    counts = inside.gap_counts(results, "procrustes_residual")
    assert counts is not None
    assert counts[0] == 0
    assert counts[1] > 0


def test_controls_are_told_with_their_intervals() -> None:
    sure = verdict.summary(make_results("controlled", layers=3)).paragraphs[3].answer
    assert "in 93% of cases" in sure
    assert "-3.80 points (90% interval -4.90 to -2.70) against base-Emb, beyond the margin" in sure
    assert "at most -0.33 points (90% interval -0.73 to +0.07), inside the margin" in sure
    blind = verdict.summary(make_results("blind_control", layers=3)).paragraphs[3].answer
    assert "in 61% of cases (80% would take 9 tasks, or 4 seeds)" in blind
    assert "not shown that this study could have seen" in blind
    missing = verdict.summary(make_results("no_advantage", layers=3)).paragraphs[3].answer
    assert "No positive control is on record" in missing


def test_sensitivity_is_not_believed_without_a_control_that_shows_it() -> None:
    for case in ("blind_control", "no_advantage"):
        results = make_results(case, layers=3)
        results["null_effect"]["word"] = "no advantage (equivalent within 1)"
        summary = verdict.summary(results)
        assert summary.word.endswith("sensitivity not shown")
        assert any("controls do not show" in text for text in summary.warnings)
    results["null_effect"]["positive_control"] = {"estimate": -3.0, "interval90": [-4.0, -0.5], "shows": True}
    assert verdict.verdict_word(results)[0].endswith("sensitivity not shown")  # the interval decides, not the flag


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("width", [60, 80])
def test_terminal_output_fits_and_is_ascii(case: str, width: int) -> None:
    results = make_results(case, layers=5)
    for text in (verdict.terminal_table(results, width), verdict.summary(results).text(width)):
        assert all(len(line) <= width for line in text.splitlines())
        assert text.isascii()


def test_terminal_table_shows_the_better_attention_mode_and_no_silent_mean() -> None:
    results = make_results("quickstart", layers=3)
    lines = verdict.terminal_table(results).splitlines()
    assert lines[0].split() == ["task", "base-Emb", "reas-Emb", "base", "reas", "BoW", "random"]
    causal = [row["score"] for row in results["benchmark"] if row["model"] == "base" and row["attention"] == "causal"]
    assert lines[-2].split()[3] == f"{100 * sum(causal) / len(causal):.1f}"
    broken = verdict.terminal_table(make_results("broken_parts", layers=3)).splitlines()
    assert broken[-2].split()[4] == "-"


def test_wilson_interval_against_known_values() -> None:
    low, high = reading.wilson(0.05, 40)  # Newcombe's formula, worked by hand
    assert low == pytest.approx(0.01382, abs=1e-4)
    assert high == pytest.approx(0.16498, abs=1e-4)
    assert reading.wilson(0.0, 10)[0] == 0.0
    assert math.isnan(reading.wilson(0.5, 0)[0])


def test_estimate_that_is_not_the_mean_of_the_tasks_is_flagged() -> None:
    results = make_results("no_advantage", layers=3)
    results["null_effect"]["estimate"] += 0.2
    assert any("not the mean of the listed differences" in text for text in verdict.summary(results).warnings)


def test_conversion_is_judged_over_the_layers_and_not_at_the_last_one_only() -> None:
    results = make_results("no_advantage", layers=8)

    def answer(sign: float) -> str:
        for name, gap in results["realignment"].items():
            change = -0.1 * sign if name == "procrustes_residual" else 0.1 * sign
            gap["value"] = [change for _ in gap["value"]]
            gap["interval95"] = [[change - 0.05, change + 0.05] for _ in gap["value"]]
        [paragraph] = [p for p in verdict.summary(results).paragraphs if p.question.startswith("What did conversion")]
        return paragraph.answer

    apart = answer(-1)
    assert apart.startswith("It moved them further apart: of ")
    assert "Largest: CKA -0.100 [-0.150, -0.050] at layer " in apart
    layers, closer, further, unclear = map(int, re.findall(r"\b\d+\b", apart)[:4])
    assert (closer, unclear) == (0, 0)
    assert further == layers
    assert answer(1).startswith(f"It brought them closer together: of {layers} layer readings {layers} are clearly ")
    ceiling = results["hrsa"]["base-Emb_vs_base-Emb_other_seed"]
    counted = [measure for measure in ("cka", "knn_10", "correlation", "procrustes_residual", "probe_agreement")
               if measure in ceiling]  # fmt: skip
    for measure in counted:  # less alike than every interval, but for one layer
        far, near = (1.5, -1.0) if measure == "procrustes_residual" else (-1.0, 1.5)
        ceiling[measure]["value"] = [near] + [far] * (len(ceiling[measure]["value"]) - 1)
    layers = sum(len(ceiling[measure]["value"]) for measure in counted)
    assert (
        f"In {layers - len(counted)} of these {layers} the embedding models are still as alike as two conversions"
        in answer(-1)
    )
    del results["hrsa"]["base-Emb_vs_base-Emb_other_seed"]  # no seed ceiling any more
    assert "how much of this is the scatter of training" in answer(-1)
    assert answer(0).startswith(f"No change can be shown: of {layers} layer readings 0 are clearly closer, 0 clearly ")


def test_a_bag_of_words_that_scores_above_the_embedding_model_is_said() -> None:
    results = make_results("no_advantage", layers=3)
    for row in results["benchmark"]:
        row["score"] = 0.999 if row["model"] == "bag-of-words" else row["score"]
    said = verdict.summary(results).paragraphs[-1].answer
    assert re.search(r"A bag of words scores above base-Emb on (\d+) of \1 tasks", said)


@pytest.mark.parametrize(("rows", "said"), [(478, True), (5000, False), (None, False)])
def test_a_rotation_fitted_on_few_rows_is_said_to_be(rows, said):
    results = make_results("quickstart")
    results["hrsa"]["base_vs_reasoning"]["facts"] = {"procrustes_rows": rows, "width": {"a": 576, "b": 576}}
    numbers = " ".join(verdict.summary(results).paragraphs[2].numbers + verdict.summary(results).paragraphs[1].numbers)
    assert ("raised by few rows: 478 fitted a map of 576 dimensions" in numbers) == said


def test_an_interval_end_says_on_which_side_of_the_margin_it_lies() -> None:
    assert points(-0.9997, 1.0) == "-0.9997"
    assert points(-1.0004, 1.0) == "-1.0004"
    assert points(-1.0, 1.0) == "-1.00"
    assert points(0.004) == "+0.004"
    assert points(-1.25, 1.0) == "-1.25"
    assert points(math.nan) == "n/a"


def test_tasks_that_conversion_made_worse_are_named_with_both_scores() -> None:
    results = make_results("no_advantage", layers=3)
    assert lowered.sentences(results) == []
    task = results["benchmark"][0]["task"]
    for row in results["benchmark"]:
        if row["task"] == task and row["model"] in ("base", "base-Emb"):
            row["score"] = 0.6 if row["model"] == "base" else 0.25
    [said] = lowered.sentences(results)
    where = f"on 1 of {len(reading.tasks(results))} tasks ({task} 25.0 instead of 60.0)"
    assert said.startswith(
        "base-Emb scores at least a point below its own backbone before conversion, in that one's better"
    )
    assert where in said
    assert said in verdict.summary(results).warnings
