"""One device, eight simulated ones on three meshes, and two processes of four devices: the same numbers.

The meshes' compiled conversion steps are also read: what they send is what runtime/communication.py predicts.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rooms

from hrsa_jax.runtime.communication import collectives, conversion_bytes
from hrsa_jax.runtime.mesh import make_mesh


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    rooms.write_models(path)
    return path


@pytest.fixture(scope="module")
def alone(folder):
    """The numbers of one device, computed once for each room."""
    found: dict[str, rooms.Numbers] = {}

    def numbers(room: str) -> rooms.Numbers:
        if room not in found:
            found[room] = rooms.ROOMS[room](folder, None)
        return found[room]

    return numbers


def check_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(1e-2, float(np.nanmax(np.abs(value), initial=0.0)))
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize(
    "layout", [name if name == "2 x 2 x 2" else pytest.param(name, marks=pytest.mark.slow) for name in rooms.MESHES]
)
def test_conversion_and_encoding_on_a_mesh(folder, alone, layout):
    mesh = make_mesh(**rooms.MESHES[layout])
    facts: dict[str, Any] = {}
    check_same(rooms.conversion(folder, mesh, facts), alone("conversion"))
    check_same(rooms.encoding(folder, mesh), alone("encoding"))
    check_communication(facts, dict(mesh.shape))


def check_communication(facts: dict[str, Any], shape: dict[str, int]) -> None:
    """Bytes as the formula has them; nothing of a parameter's size but FSDP's gathers and the gradients' sums."""
    model, rows = facts["model"], facts["rows"]
    sent = collectives(facts["hlo"], shape)
    predicted = conversion_bytes(
        model, shape, rows=rows, row_length=64, segments=8, queries=8, passages=16, remat=False
    )
    assert sum(one.bytes for one in sent) == pytest.approx(sum(part.bytes for part in predicted), rel=0.1)

    def expected(purpose: str) -> float:
        return sum(part.bytes for part in predicted if part.purpose == purpose)

    table = {model.vocab_size, model.vocab_size // 2}  # whole, and the half of one tensor device
    weights = [
        one
        for one in sent
        if one.axes != ("tensor",)
        and ("while/body" in one.operation or any(table & set(dims) for _, dims in one.shapes))
    ]
    gathers = [one for one in weights if one.kind == "all-gather"]
    assert all(one.axes == ("fsdp",) for one in gathers)
    assert sum(one.bytes for one in gathers) == pytest.approx(expected("weights"), rel=0.01)
    sums = [one for one in weights if one.kind == "all-reduce"]
    assert sum(one.bytes for one in sums) == pytest.approx(expected("gradients"), rel=0.02)
    assert len(gathers) + len(sums) == len(weights)
    states = [one for one in sent if one.axes == ("tensor",)]
    assert all(one.kind == "all-reduce" for one in states)
    assert (not states) == (shape["tensor"] == 1)
    # What is left are the vectors of the texts, for the loss: never the states of their tokens, never a weight.
    largest = 16 * model.hidden_size
    for one in sent:
        if one not in weights and one not in states:
            assert all(np.prod(dims) <= largest for _, dims in one.shapes), one


def two_processes(folder: Path, *names: str) -> list[rooms.Numbers]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    script = [sys.executable, str(Path(__file__).parent / "rooms.py"), port]
    runs = [
        subprocess.Popen([*script, str(rank), str(folder), *names], stderr=subprocess.PIPE, text=True, env=environment)
        for rank in range(2)
    ]
    for run in runs:
        _, error = run.communicate(timeout=500)
        assert run.returncode == 0, error[-3000:]
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]


@pytest.mark.slow
def test_two_processes(folder, alone):
    for found in two_processes(folder, "encoding"):
        check_same(found, {f"encoding {name}": value for name, value in alone("encoding").items()})


@pytest.mark.slow
def test_two_processes_in_every_room(folder, alone):
    expected = {f"{room} {name}": value for room in rooms.ROOMS for name, value in alone(room).items()}
    for found in two_processes(folder, *rooms.ROOMS):
        check_same(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("room", ["tuning", "comparing"])
@pytest.mark.parametrize("layout", rooms.MESHES)
def test_tuning_and_comparing_on_a_mesh(folder, alone, layout, room):
    check_same(rooms.ROOMS[room](folder, make_mesh(**rooms.MESHES[layout])), alone(room))
