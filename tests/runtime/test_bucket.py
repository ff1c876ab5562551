"""Checkpoints in a bucket: gcsfs and tensorstore against a server that speaks Google's storage protocol."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hrsa_jax.runtime.checkpoint as checkpoint_module
from hrsa_jax.runtime.checkpoint import Checkpoints
from hrsa_jax.runtime.errors import InputError, Interrupted
from hrsa_jax.runtime.logging import RunLog
from hrsa_jax.runtime.loop import OptimConfig, init_state, make_optimizer, make_step, train
from hrsa_jax.runtime.mesh import make_mesh, named_sharding

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def variables(port: int) -> dict[str, str]:
    """What points both clients at the server of `port`."""
    server = f"http://localhost:{port}"
    return {
        "STORAGE_EMULATOR_HOST": server,
        "TENSORSTORE_GCS_HTTP_URL": server,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "GOOGLE_CLOUD_PROJECT": "none",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google's own servers what kind of bucket it is
    }


@pytest.fixture(scope="module")
def bucket():
    """gs:// address of an empty bucket of this file's own server."""
    pytest.importorskip("gcsfs")
    pytest.importorskip("gcp_storage_emulator")
    port = free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host=localhost", f"--port={port}"]
    server = subprocess.Popen([*command, "--in-memory", "--default-bucket=bucket"], stderr=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables(port).items():
            patch.setenv(name, value)
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("localhost", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                assert server.poll() is None
                time.sleep(0.05)
        yield "gs://bucket"
    server.kill()
    server.wait()


def objects(address: str) -> list[str]:
    """Names below the address, relative to it."""
    import fsspec

    files = fsspec.filesystem("gs")
    files.invalidate_cache()
    root = address.removeprefix("gs://") + "/"
    return [name.removeprefix(root) for name in files.find(root)]


def steps_at(address: str) -> set[str]:
    return {name.split("/")[0] for name in objects(address)}


def test_saved_bits_come_back_on_other_meshes_and_the_oldest_goes(bucket):
    values = {"kernel": np.arange(256.0, dtype=np.float32).reshape(16, 16) / 7, "step": np.int32(7)}
    wide = make_mesh(data=1, fsdp=8)
    saved = {
        "kernel": jax.device_put(values["kernel"], named_sharding(wide, ("embed", "mlp"), (16, 16))),
        "step": jax.device_put(values["step"], named_sharding(wide, (), ())),
    }
    with Checkpoints(f"{bucket}/meshes", keep=2) as checkpoints:
        for step in (5, 6, 7):
            checkpoints.save(step, saved)
    assert steps_at(f"{bucket}/meshes") == {"6", "7"}
    for layout in (
        jax.sharding.SingleDeviceSharding(jax.devices()[0]),
        named_sharding(make_mesh(data=2, fsdp=4), ("embed", "mlp"), (16, 16)),
    ):
        empty = {"kernel": jax.device_put(jnp.zeros((16, 16)), layout), "step": jnp.int32(0)}
        with Checkpoints(f"{bucket}/meshes") as checkpoints:
            found = checkpoints.restore(empty)
        assert found["kernel"].sharding == layout
        jax.tree.map(np.testing.assert_array_equal, found, values)


def test_a_half_written_step_is_not_seen_and_is_cleaned_up(bucket):
    import fsspec

    tree = {"kernel": jnp.arange(64.0)}
    with Checkpoints(f"{bucket}/half") as checkpoints:
        checkpoints.save(1, tree)
        checkpoints.save(2, tree)
    fsspec.filesystem("gs").rm("bucket/half/2/commit_success.txt")  # written last: a kill before it leaves the rest
    assert steps_at(f"{bucket}/half") == {"1", "2"}
    with Checkpoints(f"{bucket}/half") as checkpoints:
        assert checkpoints.latest() == 1
        assert steps_at(f"{bucket}/half") == {"1"}
        checkpoints.save(2, jax.tree.map(lambda leaf: leaf + 1, tree))
        checkpoints.wait()
        np.testing.assert_array_equal(checkpoints.restore(tree)["kernel"], tree["kernel"] + 1)


def test_damaged_arrays_are_refused(bucket):
    import fsspec

    files, tree = fsspec.filesystem("gs"), {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=4096))}
    with Checkpoints(f"{bucket}/damaged") as checkpoints:
        checkpoints.save(1, tree)
    sizes = {name: files.info(f"bucket/damaged/{name}")["size"] for name in objects(f"{bucket}/damaged")}
    largest = "bucket/damaged/" + max(sizes, key=lambda name: sizes[name])
    content = bytearray(files.cat_file(largest))
    content[len(content) // 2] ^= 1
    files.pipe_file(largest, bytes(content))
    with Checkpoints(f"{bucket}/damaged") as checkpoints, pytest.raises(InputError, match="cannot be restored"):
        checkpoints.restore(tree)


def loss_fn(trainable, frozen, batch):
    return jnp.mean((batch @ trainable["w"] - 1.0) ** 2), {}


def trained(folder: Path, address: str, **kwargs):
    optimizer = make_optimizer(OptimConfig(learning_rate=0.1), STEPS)
    return train(
        init_state({"w": jnp.zeros(3)}, {}, optimizer),
        make_step(loss_fn, optimizer),
        lambda step: np.random.default_rng([7, step]).normal(size=(8, 3)).astype(np.float32),
        steps=STEPS,
        directory=folder,
        checkpoint_every=2,
        log=RunLog(folder, stream=open(os.devnull, "w")),
        label="t",
        bucket=address,
        **kwargs,
    )


@pytest.mark.slow
def test_sigterm_saves_there_and_the_same_call_continues(bucket, tmp_path):
    for name in ("whole", "cut", "other"):
        (tmp_path / name).mkdir()
    whole = trained(tmp_path / "whole", "")
    with pytest.raises(Interrupted, match="after step 3 of 6"):
        trained(
            tmp_path / "cut",
            f"{bucket}/cut",
            on_step=lambda done, state: os.kill(os.getpid(), signal.SIGTERM) if done == 3 else None,
        )
    assert not (tmp_path / "cut" / "checkpoints").exists()
    with pytest.raises(InputError, match=r"gs://bucket/cut holds the checkpoint of step 3, but this workdir has no"):
        trained(tmp_path / "other", f"{bucket}/cut")
    cut = trained(tmp_path / "cut", f"{bucket}/cut")
    jax.tree.map(np.testing.assert_array_equal, cut.saved(), whole.saved())
    assert steps_at(f"{bucket}/cut") == {"4", "6"}
    rows = [json.loads(row)["step"] for row in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(range(STEPS))


def test_a_bucket_that_is_not_there_is_one_sentence(bucket):
    started = time.monotonic()
    with pytest.raises(InputError, match=r"gs://absent/run \(no bucket absent\): check the bucket's name"):
        Checkpoints("gs://absent/run")
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://bucket", "gs:///run", "gs://"])
def test_other_addresses_are_refused(address):
    with pytest.raises(InputError, match="is no address for checkpoints: give gs://bucket/path"):
        Checkpoints(address)


def test_without_the_client_the_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(checkpoint_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install gcsfs -c constraints\.txt"):
        Checkpoints("gs://bucket/run")
