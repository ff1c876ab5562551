"""Every cell of the notebooks runs, in order and in one namespace, on tiny models."""

import ast
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from make_results import make_results
from tiny import write_model

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def code_cells(path: Path) -> list[str]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run_cell(source: str, namespace: dict) -> object:
    """What a notebook does: all statements, and the value of a last expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), namespace)
    return None if last is None else eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace)


def test_compare_two_models(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    for name, seed in (("MODEL_A", 0), ("MODEL_B", 1)):
        monkeypatch.setenv(name, str(write_model(tmp_path / name, seed=seed)))
    cells = code_cells(NOTEBOOKS / "compare_two_models.ipynb")
    six = [line for line in cells[1].splitlines() if line]
    assert len(six) == 6
    namespace: dict = {}
    shown = [run_cell(cell, namespace) for cell in cells]
    table = capsys.readouterr().out
    assert all(name in table for name in ("correlation", "cka", "knn_10", "probe_transfer"))
    picture = shown[-1]._repr_png_()  # what a notebook asks of the last expression
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


@pytest.mark.slow
def test_convert_and_search(tmp_path, monkeypatch, capsys):
    model = write_model(tmp_path / "model")
    for name, value in {"MODEL": model, "STEPS": 3, "FOLDER": tmp_path / "search"}.items():
        monkeypatch.setenv(name, str(value))
    namespace: dict = {}
    for cell in code_cells(NOTEBOOKS / "convert_and_search.ipynb"):
        run_cell(cell, namespace)
    shown = capsys.readouterr().out
    assert "before: 0." in shown
    assert "after: 0." in shown
    assert set(namespace["found"]) == {"before", "after"}
    before, after = (
        namespace["search"](namespace["Encoder"](str(source)), ["a headline"], ["a story"])
        for source in (model, tmp_path / "search" / "run" / "stages" / "convert" / "base-Emb-s0" / "model")
    )
    assert abs(float(before[0, 0]) - float(after[0, 0])) > 1e-4  # it was trained
    assert len([line for line in shown.splitlines() if line[:2] in ("0.", "1.", "-0")]) == 3  # the answers


def test_read_a_study(tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(make_results("quickstart")))
    monkeypatch.setenv("RESULTS", str(path))
    namespace: dict = {}
    shown = [run_cell(cell, namespace) for cell in code_cells(NOTEBOOKS / "read_a_study.ipynb")]
    text = capsys.readouterr().out
    assert "90% interval" in text
    assert "python launch.py" in text
    figures = [value for value in shown if hasattr(value, "savefig")]
    assert len(figures) == 2
    for number, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 8_000
