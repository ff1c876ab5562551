"""benchmarks/gpu.py runs where datasets, mteb, ml-collections and gguf are not installed, on tiny shapes here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

BLOCKED = """
import sys
for name in ("datasets", "mteb", "ml_collections", "gguf"):
    sys.modules[name] = None  # importing it fails
from benchmarks import gpu
import hrsa_jax.embedding.encoder, hrsa_jax.embedding.export, hrsa_jax.embedding.step, hrsa_jax.hrsa.geometry
sys.exit(gpu.main(sys.argv[1:]))
"""


def ran(*arguments):
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=600,
    )


def test_without_a_gpu_it_says_so_and_writes_nothing():
    before = (ROOT / "benchmarks" / "results" / "gpu.json").exists()
    found = ran()
    assert found.returncode == 2, found.stderr
    assert "needs a GPU" in found.stderr
    assert (ROOT / "benchmarks" / "results" / "gpu.json").exists() == before


@pytest.mark.slow
def test_every_part_runs_on_tiny_shapes():
    found = ran("--tiny")
    assert found.returncode == 0, found.stderr
    for part in ("encode Qwen2.5-0.5B", "convert Qwen2.5-1.5B", "hrsa Qwen2.5-1.5B", "cudnn not run"):
        assert part in found.stdout
