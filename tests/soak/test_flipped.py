"""Bits flipped at random places of what a run keeps: refused in one sentence or read as it was, never other numbers."""

import json
import random
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.run import Run
from hrsa_jax.models.backbone import load
from hrsa_jax.runtime.checkpoint import Checkpoints
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import RunLog
from hrsa_jax.runtime.workdir import Workdir

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "experiments"))
from tiny import write_model  # noqa: E402


def flip(path, draw):
    """Flips one bit; returns the bytes as they were."""
    before = path.read_bytes()
    changed = bytearray(before)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    path.write_bytes(changed)
    return before


def test_a_flipped_bit_in_a_checkpoint_is_found(tmp_path):
    values = np.random.default_rng(0)
    tree = {
        "kernel": jnp.asarray(values.standard_normal((64, 64)), jnp.float32),
        "half": jnp.asarray(values.standard_normal(96), jnp.bfloat16),
        "mask": jnp.asarray(values.integers(0, 2, 40), bool),
        "step": jnp.int32(3),
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree)
        checkpoints.save(2, tree)
    files = [path for path in (tmp_path / "2").rglob("*") if path.is_file() and path.stat().st_size]
    draw, damaged = random.Random(10), 0
    for path in [*draw.choices(files, k=16), *draw.choices(files, [path.stat().st_size for path in files], k=16)]:
        before = flip(path, draw)
        try:
            with Checkpoints(tmp_path) as checkpoints:
                found = checkpoints.restore(tree)
        except InputError as error:
            assert re.search(r"checkpoint (2 )?in .*: delete the (newest folder|folder 2) there", str(error))  # noqa: PT017
            damaged += 1
            found = tree
        jax.tree.map(np.testing.assert_array_equal, found, tree)
        path.write_bytes(before)
    assert damaged > 8  # without the sums beside the arrays: other numbers, and no word


def test_a_flipped_bit_in_a_stage_marker_is_refused_or_makes_the_stage_anew(tmp_path):
    result = {"score": 0.512345, "curve": [1.0, 2.5, 3.25], "name": "base-Emb", "ok": True}
    with Workdir(tmp_path, {}) as workdir, workdir.stage("a", {"model": "x"}) as stage:
        stage.complete(result)
    marker, draw, refused = tmp_path / "stages" / "a" / "done.json", random.Random(11), 0
    for _ in range(80):
        before = flip(marker, draw)
        try:
            with Workdir(tmp_path, {}) as workdir:
                stage = workdir.stage("a", {"model": "x"})
                assert not stage.done or stage.result == result
        except InputError as error:
            assert "done.json" in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
        marker.write_bytes(before)
    assert refused > 30


def test_a_flipped_bit_in_a_stages_model_is_found(tmp_path):
    """Weights have no sums of their own: a flipped bit is another model, which nothing but its fingerprint tells."""
    with Workdir(tmp_path, {}) as workdir:
        with workdir.stage("tune", {}) as stage:
            write_model(stage.path / "model")
            stage.complete({"fingerprint": load(stage.path / "model").fingerprint})
        assert Run(workdir, RunLog(None)).load("stages/tune/model").config.num_layers == 2
        for path in (tmp_path / "stages" / "tune" / "model").glob("*.safetensors"):
            changed = bytearray(path.read_bytes())
            changed[-100] ^= 1
            path.write_bytes(changed)
        for _ in range(2):
            with pytest.raises(InputError, match=r"is not the model that its stage wrote .* delete .*/stages/tune to"):
                Run(workdir, RunLog(None)).load("stages/tune/model")


def test_a_marker_of_before_there_were_sums_is_still_read(tmp_path):
    with Workdir(tmp_path, {}) as workdir, workdir.stage("a", {}) as stage:
        stage.complete(1)
    marker = tmp_path / "stages" / "a" / "done.json"
    record = json.loads(marker.read_text())
    del record["sum"]
    marker.write_text(json.dumps(record))
    with Workdir(tmp_path, {}) as workdir:
        assert workdir.stage("a", {}).done
