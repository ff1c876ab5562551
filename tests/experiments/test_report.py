"""The report experiment: a page anew, several studies on one page, and one sentence for each bad input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments import report
from hrsa_jax.report import studies_page
from hrsa_jax.runtime.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from make_results import make_results

CASES = {"sft": "no_advantage", "rlvr": "advantage", "full": "inconclusive_three_seeds"}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with three studies and a demonstration, as studies leave them."""
    for name, case in {**CASES, "demo": "quickstart"}.items():
        results = make_results(case, layers=3)
        results["demonstration"] = name == "demo"
        results["models"]["reasoning"]["fingerprint"] = name
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    return tmp_path


def _run(folder: Path, *studies: str) -> int:
    return report.run({"studies": studies}, str(folder), command="python launch.py --config=configs/report.py")


def test_one_study_is_rebuilt_where_it_is_or_where_it_is_wanted(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(runs / "sft") == 0
    here = (runs / "sft" / "report.html").read_text(encoding="utf-8")
    assert "Verdict: no advantage (equivalent within 1); sensitivity not shown." in here
    assert "Verdict: no advantage (equivalent within 1); sensitivity not shown." in "".join(capsys.readouterr())
    assert sorted(path.name for path in (runs / "sft").iterdir()) == ["report.html", "results.json"]
    assert _run(runs / "elsewhere", str(runs / "sft" / "results.json")) == 0
    assert (runs / "elsewhere" / "report.html").read_text(encoding="utf-8") == here


def test_three_studies_make_one_page_one_table_and_one_file(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = (str(runs / "sft"), str(runs / "rlvr" / "results.json"), f"whole={runs / 'full'}")
    for _ in range(2):  # again with the same studies: the same files
        assert _run(runs / "table", *sources) == 0
        out = "".join(capsys.readouterr())
        record = json.loads((runs / "table" / "results.json").read_text())
        assert [row["name"] for row in record["studies"]] == ["sft", "rlvr", "whole"]
        words = [studies_page.short_word(row["corrected"]) for row in record["studies"]]
        assert words == ["no advantage", "advantage", "inconclusive"]
        assert all(row["p_holm"] >= row["p"] for row in record["studies"])
        assert (runs / "table" / "table.txt").read_text() in out
    html = (runs / "table" / "report.html").read_text(encoding="utf-8")
    assert html.count("<svg") == 5  # the forest and four measures
    for row in record["studies"]:
        assert f"{row['estimate']:+.2f}" in html
    assert "http://" not in html.replace("http://www.w3.org/", "")
    assert "https://" not in html


def test_a_demonstration_mixed_in_is_flagged(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(runs / "table", str(runs / "sft"), str(runs / "rlvr"), str(runs / "demo")) == 0
    said = "Demonstration mixed in: demo"
    assert said in "".join(capsys.readouterr())
    assert said in (runs / "table" / "report.html").read_text(encoding="utf-8")
    record = json.loads((runs / "table" / "results.json").read_text())
    assert "demonstration" in record["studies"][2]["flags"]
    assert record["studies"][2]["corrected"].startswith("inconclusive")  # one seed


def _copy(runs: Path) -> tuple[str, ...]:
    (runs / "copy").mkdir()
    text = (runs / "sft" / "results.json").read_text()
    (runs / "copy" / "results.json").write_text(json.dumps(json.loads(text) | {"timings": {}}))
    return str(runs / "sft"), str(runs / "copy")


def _other_schema(runs: Path) -> tuple[str, ...]:
    (runs / "rlvr" / "results.json").write_text('{"schema": 7, "benchmark": []}')
    return str(runs / "sft"), str(runs / "rlvr")


def _comparison(runs: Path) -> tuple[str, ...]:
    _run(runs / "first", str(runs / "sft"), str(runs / "rlvr"))
    return str(runs / "full"), str(runs / "first")


@pytest.mark.parametrize(
    ("studies", "message"),
    [
        (lambda runs: (str(runs / "sft"), str(runs / "nowhere")), r"There is no .*nowhere.*: run the study first"),
        (lambda runs: (str(runs / "sft"), str(runs / "sft")), "names .*sft twice"),
        (lambda runs: (f"a={runs / 'sft'}", f"a={runs / 'rlvr'}"), "two studies called 'a': write NAME=PATH"),
        (lambda runs: (f"a={runs / 'sft'}", f"b={runs / 'sft'}"), "a and b are the same study"),
        (_copy, "sft and copy are the same study"),
        (_other_schema, "has schema 7 and this version reads schema 1"),
        (_comparison, "is a comparison of studies, not a study"),
    ],
)
def test_bad_studies_are_refused_in_one_sentence(studies: Any, message: str, runs: Path) -> None:
    named = studies(runs)
    with pytest.raises(InputError, match=message) as caught:
        _run(runs / "table", *named)
    assert "\n" not in str(caught.value)
    assert not (runs / "table" / "report.html").exists()


def test_a_study_is_not_written_over(runs: Path) -> None:
    before = (runs / "full" / "results.json").read_text()
    with pytest.raises(InputError, match=r"holds a study.s results"):
        _run(runs / "full", str(runs / "sft"), str(runs / "rlvr"))
    assert (runs / "full" / "results.json").read_text() == before
    assert not (runs / "full" / "report.html").exists()


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no"):
        _run(tmp_path)
