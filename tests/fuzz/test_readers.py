"""Every reader meets broken documents: a value or InputError, in bounded memory, with nothing run or written outside.

Here a few documents each; `make fuzz` takes each reader through HRSA_FUZZ (10,000). What once broke a reader is kept in
test_found_cases.py.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "experiments")]
from readers import Reader, readers

from hrsa_jax.runtime.errors import InputError

READERS = readers()
MEMORY = 1 << 30  # bytes that all documents of one reader may add to the process
SHARD = b'{"a.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
GOOD = {  # what must lie beside a document for its reader to come to it
    "modules.json": b'[{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "1_Pooling"}]',
    "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    "stages/cut/inputs.json": b'{"b": 2}',
    "model-1.safetensors": struct.pack("<Q", len(SHARD)) + SHARD + bytes(8),
}
_watch: dict[str, Any] = {"folder": None, "seen": []}


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Notes what no reader may do: start programs, as the documents ask, unpickle, connect, write outside."""
    folder = _watch["folder"]
    if folder is None:
        return
    if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "pickle.find_class", "socket.connect"):
        _watch["seen"].append(f"{event} {arguments!r:.200}")
    if (
        event == "open"
        and isinstance(arguments[0], str | bytes)
        and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    ):
        _outside(event, arguments[0])
    if event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink"):
        inside = arguments[-1] if event != "os.rename" and isinstance(arguments[-1], int) else -1  # a folder's number
        _outside(event, arguments[0] if inside < 0 else f"/proc/self/fd/{inside}/{arguments[0]}")


def _outside(event: str, path: str | bytes) -> None:
    if not os.path.realpath(os.fsdecode(path)).startswith(_watch["folder"]):
        _watch["seen"].append(f"{event} {path!r}")


sys.addaudithook(_hook)
sys.dont_write_bytecode = True  # a library that a reader imports late is no output of the reader


@contextmanager
def watched(folder: str) -> Iterator[None]:
    """Fails when a forbidden event was seen, or when memory grew past its bound."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    _watch.update(folder=os.path.realpath(folder), seen=[])
    try:
        yield
    finally:
        _watch["folder"] = None
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    assert not _watch["seen"], _watch["seen"][:3]


def meet(reader: Reader, document: Any) -> bool:
    """Puts the document before its reader; whether it was read (InputError: it was not)."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        given: Any = document
        if reader.file is not None:
            given = Path(folder)
            for name, raw in {**GOOD, reader.file: document}.items():
                (given / name).parent.mkdir(parents=True, exist_ok=True)
                (given / name).write_bytes(raw)
        with watched(folder):
            try:
                reader.read(given)
            except InputError as error:
                message = str(error)
                assert message.isprintable()  # nothing in it steers a terminal
                assert 20 < len(message) < 2000
                return False
            return True


def go_through(name: str, count: int) -> tuple[int, int]:
    """Generates `count` documents; how many were met, and how many of them could be read."""
    reader, met, read = READERS[name], 0, 0

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=count < 1000,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(reader.documents)
    def run(document: Any) -> None:
        nonlocal met, read
        met += 1
        read += meet(reader, document)

    run()
    return met, read


@pytest.mark.parametrize("name", READERS)
def test_a_few_broken_documents(name):
    go_through(name, 25)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_ten_thousand_broken_documents(name, capsys):
    began, count = time.process_time(), int(os.environ.get("HRSA_FUZZ", "10000"))
    met, read = go_through(name, count)
    with capsys.disabled():
        print(f"\n{name}: {met} documents, {read} readable, {time.process_time() - began:.0f} CPU-seconds", flush=True)
    assert met >= count
