"""Every cell of the notebooks runs, in order and in one namespace, on tiny models."""

import ast
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
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
