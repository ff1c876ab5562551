"""SIGKILL at random moments, also inside a checkpoint save: the resumed run ends bit-identical to one left alone."""

import json
import multiprocessing
import time

import crashing
import numpy as np
import pytest


@pytest.fixture(scope="module")
def processes():
    """Processes that start with everything imported and no JAX backend running yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crashing", "orbax.checkpoint.v1", "tensorboardX"])
    return context


def start(processes, folder, steps):
    folder.mkdir(exist_ok=True)
    child = processes.Process(target=crashing.train_to_end, args=(str(folder), steps))
    child.start()
    return child


def steps_logged(folder):
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def kill(processes, folder, steps, *, inside_save, delay):
    """Starts the run and kills it: at the first sight of a half-written checkpoint, or `delay` seconds after a step.

    Returns whether the kill came before the run's end.
    """
    child = start(processes, folder, steps)
    before, deadline = steps_logged(folder), time.monotonic() + 120
    while child.is_alive() and time.monotonic() < deadline:
        if inside_save and any("tmp" in path.name for path in (folder / "checkpoints").glob("*")):
            break
        if not inside_save and steps_logged(folder) > before + 1:
            time.sleep(delay)
            break
    child.kill()
    child.join()
    return child.exitcode == -9


def check_equal(folder, whole, steps):
    with np.load(folder / "final.npz") as mine, np.load(whole / "final.npz") as theirs:
        assert mine.files == theirs.files
        for name in mine.files:
            np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
    losses = [
        [(row["step"], row["loss"]) for row in map(json.loads, (path / "metrics.jsonl").read_text().splitlines())]
        for path in (folder, whole)
    ]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == list(range(steps))


def finish(processes, folder, steps):
    child = start(processes, folder, steps)
    child.join(300)
    assert child.exitcode == 0, (folder / "log.txt").read_text()


def test_killed_once_between_and_once_inside_a_save(processes, tmp_path):
    steps = 16
    finish(processes, tmp_path / "whole", steps)
    assert kill(processes, tmp_path / "cut", steps, inside_save=False, delay=0.03)
    assert kill(processes, tmp_path / "cut", steps, inside_save=True, delay=0.0)
    finish(processes, tmp_path / "cut", steps)
    check_equal(tmp_path / "cut", tmp_path / "whole", steps)


@pytest.mark.slow
def test_killed_at_ten_random_moments(processes, tmp_path):
    """Half of the kills aim at a save; the others come 0 to 0.2 seconds after a step."""
    steps, random = 80, np.random.default_rng()  # other moments each time, on purpose
    finish(processes, tmp_path / "whole", steps)
    hits = [
        kill(processes, tmp_path / "cut", steps, inside_save=number % 2 == 0, delay=random.uniform(0, 0.2))
        for number in range(10)
    ]
    assert all(hits), f"{hits.count(False)} kills came after the run's end: make it longer"
    finish(processes, tmp_path / "cut", steps)
    check_equal(tmp_path / "cut", tmp_path / "whole", steps)
