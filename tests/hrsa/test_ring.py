"""Samples sharded over eight simulated devices give the numbers of one device, without gathering the rows."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import reference as ref
from jax.sharding import AxisType

from hrsa_jax.hrsa import cka_stack, geometry, ring
from hrsa_jax.hrsa.cka_batches import _update, layers_init, layers_result, layers_update

DEVICES = 8


@pytest.fixture(scope="module")
def mesh():
    if len(jax.devices()) < DEVICES:
        pytest.skip("needs eight (simulated) devices")
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))


def stacks(n=75):
    rng = np.random.default_rng(0)
    xs = (rng.standard_normal((2, n, 6)) + 5).astype(np.float32)
    ys = (xs[:1, :, :5] + rng.standard_normal((3, n, 5))).astype(np.float32)
    return xs, ys


@pytest.mark.parametrize(
    ("debiased", "by_gram", "devices"),
    [(True, True, 8), (True, True, 3), (False, True, 8), (True, False, 8)],  # 75 rows do not divide by 8
)
def test_cka_equals_one_device(mesh, monkeypatch, debiased, by_gram, devices):
    part = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    monkeypatch.setattr(ring, "gram_is_cheaper", lambda *_: by_gram)
    monkeypatch.setattr(cka_stack, "TILE", 4)  # several tiles on every device, the last one ragged
    xs, ys = stacks()
    found = ring.sharded_cka_matrix(xs, ys, part, debiased=debiased)
    np.testing.assert_allclose(found, geometry.cka_matrix(xs, ys, debiased=debiased), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1, 2], ref.linear_cka(xs[1], ys[2], debiased=debiased), rtol=1e-5, atol=1e-6)


def test_neighbours_equal_one_device_with_ties_and_groups(mesh):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 6)).astype(np.float32)[rng.integers(0, 20, 75)]  # many exact ties
    groups = rng.integers(0, 10, 75)
    for options in ({}, {"groups": groups}, {"metric": "euclidean"}):
        found = ring.sharded_nearest_neighbors(x, 12, mesh, **options)
        np.testing.assert_array_equal(found, geometry.nearest_neighbors(x, 12, **options))


def test_streaming_over_sharded_rows_equals_one_device(mesh):
    xs, ys = stacks(80)
    state = geometry.cka_init(6, 5)
    for start in (0, 40):
        rows = [ring.shard_rows(z[start : start + 40], mesh, "data") for z in (xs[0], ys[0])]
        state = geometry.cka_update(state, *rows)
    np.testing.assert_allclose(geometry.cka_result(state), ref.linear_cka(xs[0], ys[0]), rtol=1e-5)


def test_a_stream_of_all_layers_over_sharded_rows_equals_one_device_by_all_reduces_alone(mesh):
    xs, ys = stacks(80)
    state = layers_init(2, 6, 3, 5)
    for start in (0, 40):
        rows = [ring.shard_rows(z[:, start : start + 40], mesh, "data") for z in (xs, ys)]
        text = _update.lower(state, *rows, np.ones(40, bool)).compile().as_text()
        assert "all-reduce" in text
        assert not any(other in text for other in ("all-gather", "all-to-all", "collective-permute"))
        state = layers_update(state, *rows)
    np.testing.assert_allclose(layers_result(state), geometry.cka_matrix(xs, ys), rtol=1e-5, atol=1e-6)


def test_the_programs_move_what_they_should(mesh):
    xs, ys = (ring.shard_rows(z, mesh, "data") for z in stacks())
    covariance = ring.covariance_program.lower(xs, ys, 75, mesh, "data", True).compile().as_text()
    assert "all-reduce" in covariance
    for other in ("all-gather", "all-to-all", "collective-permute"):
        assert other not in covariance
    gram = ring.gram_program.lower(xs, ys, 75, mesh, "data", True).compile().as_text()
    assert "collective-permute" in gram
    assert "all-gather" not in gram
    update = jax.jit(geometry.cka_update).lower(geometry.cka_init(6, 5), xs[0], ys[0]).compile().as_text()
    assert "all-gather" not in update
    rows = ring.shard_rows(np.ones((80, 16), np.float32), mesh, "data")
    flat = [jax.device_put(np.zeros(80, t), rows.sharding.update(spec=jax.P("data"))) for t in (np.float32, np.int32)]
    neighbours = ring.neighbor_program.lower(rows, *flat, 5, 10, mesh, "data").compile().as_text()
    assert "collective-permute" in neighbours
    assert "all-gather" not in neighbours


def test_too_few_rows_are_nan_and_bad_input_is_refused(mesh):
    xs, ys = stacks()
    assert np.isnan(ring.sharded_cka_matrix(xs[:, :3], ys[:, :3], mesh)).all()
    with pytest.raises(ValueError, match="x has 75 rows and y has 74"):
        ring.sharded_cka_matrix(xs, ys[:, 1:], mesh)
    with pytest.raises(ValueError, match="k is 75"):
        ring.sharded_nearest_neighbors(xs[0], 75, mesh)


def test_two_processes_equal_one_device():
    """Real processes with real collectives (gloo), two devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    script = str(Path(__file__).parent / "two_processes.py")
    runs = [
        subprocess.Popen(
            [sys.executable, script, str(port), str(rank)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(2)
    ]  # fmt: skip
    for run in runs:
        out, error = run.communicate(timeout=240)
        assert run.returncode == 0, error[-2000:]
        assert out.strip().endswith("equal")
