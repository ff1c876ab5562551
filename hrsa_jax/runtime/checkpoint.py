"""Training checkpoints: any pytree of arrays, written asynchronously by Orbax, restorable onto any mesh.

The on-disk tree is a flat dict {key path: array}, so that the layout depends neither on the module library nor on
the container types in use. A sum of every array's bits lies beside it and is checked on reading: the format itself
would give back a flipped bit as another number. Orbax's names still move between releases; they appear in this file
only.
"""

from __future__ import annotations

import errno
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jax
import jax.numpy as jnp

from hrsa_jax.runtime.errors import InputError

PyTree = Any


def _flat(tree: PyTree) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@jax.jit
def _sum(array: jax.Array) -> jax.Array:
    """uint32 () of the array's bits, another one whenever a single one flips: every word counts an odd number of times.

    Computed where the array lies, so that it also serves arrays split over several hosts.
    """
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    word = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    words = jax.lax.bitcast_convert_type(array, word).reshape(-1).astype(jnp.uint32)
    return jnp.sum(words * (2 * jnp.arange(words.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)


def _sums(flat: dict[str, Any]) -> dict[str, int]:
    # One after the other: each sum is a meeting of all processes, and meetings that overlap can hang on CPU.
    return {key: int(_sum(leaf)) for key, leaf in flat.items()}


def _reason(error: Exception) -> str:
    """What the system said where the error carries it, else the error's first line."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
        if os.strerror(number).lower() in str(error).lower():
            return os.strerror(number)
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def check_bucket(address: str) -> None:
    """Refuses an address at which no checkpoint could be written, before any work is done.

    One small request is sent; the client tries it for about half a minute where nobody answers.

    Raises:
        InputError: it is not gs://bucket/path, the package that reaches Google's buckets is missing, or the bucket
            does not answer.
    """
    parts = urlsplit(address)
    if parts.scheme != "gs" or not parts.netloc or not parts.path.strip("/"):
        raise InputError(f"{address} is no address for checkpoints: give gs://bucket/path (empty: inside the workdir)")
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(
            f"checkpoints at {address} need the package gcsfs: .venv/bin/pip install gcsfs -c constraints.txt"
        )
    import fsspec

    try:
        fsspec.filesystem("gs").call("GET", "b/{}/o", parts.netloc, maxResults=1, json_out=True)
    except Exception as error:
        reason = f"no bucket {parts.netloc}" if isinstance(error, FileNotFoundError) else _reason(error)
        raise InputError(
            f"checkpoints cannot be kept at {address} ({reason}): check the bucket's name, its rights and the "
            "network, then run the same command again"
        ) from error


class Checkpoints:
    """Numbered checkpoints in one folder; a save is visible only when it is complete.

    Args:
        directory: folder, created when absent, or gs://bucket/path (the bucket exists).
        keep: how many of the newest steps stay on disk.

    Raises:
        InputError: what a checkpoint says of itself cannot be read, or the bucket cannot be reached.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2):
        from orbax.checkpoint import v1 as ocp

        self._ocp = ocp
        self.directory = str(directory)
        self._cure = "free space or fix permissions"
        if "://" in self.directory:
            self._cure = "check the bucket's rights and the network"
            check_bucket(self.directory)
        else:
            self.directory = str(Path(directory).absolute())
        try:
            self._checkpointer = ocp.training.Checkpointer(
                self.directory,
                preservation_policy=ocp.training.preservation_policies.LatestN(keep),
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                cleanup_tmp_directories=True,
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # what it says of its own files' content
            raise InputError(
                f"a checkpoint in {self.directory} is damaged ({_reason(error)}): delete the newest folder there to "
                "continue from an earlier step, or use a new workdir"
            ) from error
        self._writing: tuple[int, Any] | None = None
        self._closed = self._failed = False

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        newest = self._checkpointer.latest
        return None if newest is None else int(newest.step)

    def save(self, step: int, tree: PyTree) -> None:
        """Starts writing `tree` (device arrays) as `step`, in place of an earlier one; returns before the write ends.

        Raises:
            InputError: the checkpoint before this one could not be written (or this one, where that shows at once).
        """
        self._finish()
        if jax.default_backend() == "cpu":
            # Host views of CPU arrays share their memory, and the training step donates it while the write runs.
            tree = jax.tree.map(jax.numpy.copy, tree)
        flat = _flat(tree)
        with self._explained(step):
            response = self._checkpointer.save_pytree_async(
                *(step, flat),
                force=True,
                overwrite=step in self._complete(),
                custom_metadata={"sums": _sums(flat)},
            )
            self._writing = (step, response)

    def restore(self, tree: PyTree, step: int | None = None) -> PyTree:
        """Reads a checkpoint into the structure, shapes, dtypes and shardings of `tree`.

        Raises:
            InputError: no checkpoint, or one whose arrays do not match `tree` or are not those that were saved.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise InputError(f"no complete checkpoint in {self.directory}: start the run without resuming")
        abstract = {
            key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for key, leaf in _flat(tree).items()
        }
        try:
            flat = self._checkpointer.load_pytree(step, abstract)
            told = (self._checkpointer.metadata(step).custom_metadata or {}).get("sums", {})  # older ones have none
            damaged = sorted(
                key for key, value in _sums({key: flat[key] for key in told}).items() if value != told[key]
            )
            if damaged:
                raise ValueError(f"{len(damaged)} of its {len(flat)} arrays are not as they were saved: {damaged[0]}")
        except Exception as error:
            raise InputError(
                f"checkpoint {step} in {self.directory} cannot be restored ({_reason(error)}): "
                f"delete the folder {step} there to continue from an earlier step, or use a new workdir"
            ) from error
        paths = jax.tree_util.tree_leaves_with_path(tree)
        leaves = [flat[jax.tree_util.keystr(path)] for path, _ in paths]
        return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(tree), leaves)

    def close(self) -> None:
        """Waits for pending writes and releases the folder.

        Raises:
            InputError: the last checkpoint could not be written.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._finish()
        finally:
            # Orbax reports a failed write a second time when it is closed; the first report is the one that explains.
            with suppress(Exception) if self._failed else nullcontext():
                self._checkpointer.close()

    def wait(self) -> None:
        """Returns when the checkpoint that is being written is complete; errors as in `save`."""
        self._finish()

    def _finish(self) -> None:
        if self._writing is not None:
            (step, response), self._writing = self._writing, None
            with self._explained(step):
                response.result()

    @contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._failed = True
            whole = [number for number in self._complete() if number != step]
            kept = f"the last complete one is step {whole[-1]}" if whole else "there is no earlier one"
            late = "timed out" in str(error)  # Orbax's limit of 20 minutes goes by the wall clock
            cure = "the clock jumped or the writes hang: put that right" if late else self._cure
            raise InputError(
                f"checkpoint {step} in {self.directory} cannot be written ({_reason(error)}); {kept}: {cure}, "
                "then run the same command again"
            ) from error

    def _complete(self) -> list[int]:
        return sorted(int(found.step) for found in self._checkpointer.checkpoints)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
