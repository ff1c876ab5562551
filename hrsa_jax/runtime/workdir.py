"""The folder of one run: lock, manifest, and stages that are done once.

    <workdir>/manifest.json          config, versions, and what each stage read and gave
              stages/<stage>/inputs.json    written first: fingerprint of everything the stage depends on
                             done.json      written last, atomically: the stage's result, seconds, peak memory
              metrics.jsonl, tensorboard/, results.json, report.html

A stage whose marker carries the fingerprint of its present inputs is not run again. A stage that was cut off keeps its
files (checkpoints, finished tasks) as long as its inputs are the same, and starts clean otherwise. A stage that another
workdir finished with the same inputs and versions is taken over from it, where the caller names that workdir. What a
run that ended by bad input has made is taken away again, as long as it holds no work.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hrsa_jax.runtime import processes
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import LOG
from hrsa_jax.runtime.memory import PeakMemory

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "mteb", "numpy", "scipy")


def fingerprint(value: Any) -> str:
    """16 hex digits of the SHA-256 of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON (NaN and infinities become null) so that a reader sees the old file or the whole new one.

    Of several processes, number 0 writes.
    """
    if processes.index() != 0:
        return
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:  # half a character: \ud800
        json.dump(_finite(value), file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """Reads a JSON file; InputError names the file where it is missing, cut or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: check the path or run the stage that writes it") from error
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): restore it, or delete it and run again") from error


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class Stage:
    """One stage of a run, used as a context manager (see `Workdir.stage`)."""

    def __init__(
        self,
        name: str,
        path: Path,
        inputs: dict[str, Any],
        on_complete: Callable[[Stage], None],
        donors: Sequence[Path] = (),
        on_start: Callable[[Stage], None] = lambda stage: None,
    ):
        self.name, self.path, self.inputs = name, path, inputs
        self.fingerprint = fingerprint(inputs)
        self.taken_from: str | None = None
        self._marker = path / "done.json"
        self._on_complete, self._on_start = on_complete, on_start
        self._record: dict[str, Any] = {}
        if processes.index() == 0:
            self._record = self._finished(path) or self._take_over(donors)
        self._record, self.taken_from = processes.agreed((self._record, self.taken_from))
        self._started = 0.0
        self._memory = PeakMemory()
        if self.taken_from:
            self._on_complete(self)

    def _finished(self, folder: Path) -> dict[str, Any]:
        """The marker in `folder` if it is of these inputs, else nothing."""
        marker = folder / "done.json"
        record = read_json(marker) if marker.exists() else {}
        told = record.pop("sum", None) if isinstance(record, dict) else ""
        if told is not None and told != fingerprint(record):  # markers of before there were sums have none
            raise InputError(f"{marker} is damaged (its sum does not fit): delete {folder} to run the stage again")
        return record if record.get("fingerprint") == self.fingerprint else {}

    def _take_over(self, donors: Sequence[Path]) -> dict[str, Any]:
        """Files and marker of the first donor that finished this stage; hard links where the disk allows them."""
        for donor in donors:
            folder = donor / "stages" / self.name
            record = self._finished(folder)
            if not record:
                continue
            fresh = self.path.with_name(f".{self.path.name}.taken")
            for old in (fresh, self.path):
                shutil.rmtree(old, ignore_errors=True)
            shutil.copytree(folder, fresh, copy_function=_link_or_copy)
            os.replace(fresh, self.path)
            self.taken_from = str(donor)
            return record
        return {}

    @property
    def done(self) -> bool:
        """True when a marker with today's inputs is there."""
        return bool(self._record)

    @property
    def result(self) -> Any:
        """What `complete` was given."""
        return self._record["result"]

    @property
    def timing(self) -> dict[str, float]:
        """{"seconds", "peak_mb"} of the run that completed the stage."""
        return {"seconds": self._record["seconds"], "peak_mb": self._record["peak_mb"]}

    def complete(self, result: Any) -> None:
        """Writes the marker: everything in the stage's folder is final from here on."""
        self._record = {
            "fingerprint": self.fingerprint,
            "result": _finite(result),
            "seconds": round(time.monotonic() - self._started, 3),
            "peak_mb": round(self._memory.peak_mb(), 1),
        }
        self._record = processes.agreed(self._record)
        write_json(self._marker, self._record | {"sum": fingerprint(self._record)})
        self._on_complete(self)

    def __enter__(self) -> Stage:
        self._on_start(self)
        if self.done:
            return self
        inputs_path = self.path / "inputs.json"
        if self.path.exists() and processes.index() == 0:
            same = inputs_path.exists() and _try_json(inputs_path) == json.loads(json.dumps(self.inputs, default=str))
            if not same or self._marker.exists():
                shutil.rmtree(self.path)
        processes.agreed(None)  # the folder is made anew before anyone writes to it
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(inputs_path, self.inputs)
        self._started = time.monotonic()
        self._memory.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._memory.stop()
        if kind is not None and issubclass(kind, InputError) and processes.index() == 0:
            _remove_bare(self.path, ("inputs.json",), (self.path, *self.path.parents))


class Workdir:
    """Opens (or creates) the folder of a run and holds its lock until `close`.

    Args:
        path: folder of the run.
        config: the run's config as a JSON value; a used workdir refuses another one.
        seconds_to_wait: how long to wait for the lock of a run that is ending.
        reuse: other workdirs, whose finished stages with the same inputs are taken over instead of run again.

    Raises:
        InputError: the folder cannot be written, is in use by another run, or belongs to another config.
    """

    def __init__(
        self,
        path: str | Path,
        config: dict[str, Any],
        *,
        seconds_to_wait: float = 0.0,
        reuse: Sequence[str | Path] = (),
    ):
        self.path = Path(path).absolute()
        self._new, self._made = False, list[Path]()  # whether this run made the manifest, and the folders it made
        self.listeners: list[Callable[[Stage], None]] = []  # called when a stage begins, or is found done, and ends
        self._donors = [_checked_donor(Path(folder).absolute(), self.path) for folder in reuse]
        problem = None
        if processes.index() == 0:
            try:
                self._open(config, seconds_to_wait)
            except InputError as error:
                if processes.count() == 1:
                    raise
                problem = str(error)
        problem = processes.agreed(problem)
        if problem:
            raise InputError(problem)
        if processes.index() != 0:
            self._follow()

    def _follow(self) -> None:
        """The folder as process 0 opened it, for a process that writes nothing there."""
        self._manifest_path = self.path / "manifest.json"
        if not self._manifest_path.exists():
            raise InputError(
                f"workdir {self.path} is not seen by process {processes.index()}: give a folder that all hosts share"
            )
        self.manifest = _read_manifest(self._manifest_path)

    def _open(self, config: dict[str, Any], seconds_to_wait: float) -> None:
        self._new = not (self.path / "manifest.json").exists()
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a+")
        except OSError as error:
            above = next((folder for folder in (self.path, *self.path.parents) if folder.is_file()), None)
            if above is not None:
                raise InputError(f"workdir {self.path} cannot be made, {above} is a file: give a folder") from None
            raise InputError(
                f"workdir {self.path} cannot be written ({error.strerror}): give another --workdir, or fix its rights"
            ) from error
        self._acquire(seconds_to_wait)
        self._manifest_path = self.path / "manifest.json"
        config = json.loads(json.dumps(config, default=str))
        # A run that never began a stage (a misspelt model, say) binds nobody to its config.
        if self._manifest_path.exists() and (self.path / "stages").exists():
            self.manifest = _read_manifest(self._manifest_path)
            try:
                self._refuse_other_config(config)
            except InputError:
                self.close()
                raise
        else:
            self.manifest = {
                "config": config,
                "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "stages": {},
            }
        self.manifest["versions"] = versions()
        write_json(self._manifest_path, self.manifest)

    def stage(self, name: str, inputs: dict[str, Any]) -> Stage:
        """The stage `name` whose outcome depends on `inputs` (JSON) alone: `with workdir.stage(...) as stage`."""
        return Stage(name, self.path / "stages" / name, inputs, self._record_stage, self._donors, self._tell)

    def record(self, key: str, value: Any) -> None:
        """Writes `value` (JSON) under `key` into manifest.json."""
        self.manifest[key] = value
        write_json(self._manifest_path, self.manifest)

    def close(self) -> None:
        """Releases the lock."""
        if processes.index() == 0:
            self._lock.close()

    def __enter__(self) -> Workdir:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, InputError) and self._new:
            _remove_bare(self.path, (".lock", "manifest.json", LOG), self._made)
        self.close()

    def _record_stage(self, stage: Stage) -> None:
        self.manifest["stages"][stage.name] = {
            "inputs": stage.inputs,
            "fingerprint": stage.fingerprint,
            **stage.timing,
            **({"taken_from": stage.taken_from} if stage.taken_from else {}),
        }
        write_json(self._manifest_path, self.manifest)
        if not stage.taken_from:  # what is taken over ends before it begins
            self._tell(stage)

    def _tell(self, stage: Stage) -> None:
        for listener in self.listeners:
            listener(stage)

    def _acquire(self, seconds_to_wait: float) -> None:
        deadline = time.monotonic() + seconds_to_wait
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.1)
                    continue
                self._lock.seek(0)
                owner = self._lock.read().strip() or "unknown"
                self._lock.close()
                raise InputError(
                    f"workdir {self.path} is in use by process {owner}: wait for it, stop it, or give another --workdir"
                ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def _refuse_other_config(self, config: dict[str, Any]) -> None:
        old = self.manifest.get("config", {})
        changes = _differences(old, config)
        if config and isinstance(old, dict) and not len(old.keys() & config.keys()) > len(config) / 2:
            raise InputError(f"workdir {self.path} belongs to a run of another experiment: give a new --workdir")
        if changes:
            shown = "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")
            take = f" (--config.reuse=\"('{self.path}',)\" takes what is finished here)" if "reuse" in config else ""
            raise InputError(
                f"workdir {self.path} belongs to a run with another config ({shown}): give a new --workdir{take}, or "
                "the old settings to continue"
            )


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("stages"), dict):
        raise InputError(f"{path} is damaged (it is no manifest of stages): restore it, or give a new --workdir")
    return manifest


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        rows = []
        for key in sorted(old.keys() | new.keys()):
            rows += _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        return rows
    return [] if old == new else [f"{where}: was {json.dumps(old):.60}, now {json.dumps(new):.60}"]


def _remove_bare(folder: Path, names: Sequence[str], folders: Sequence[Path]) -> None:
    """Empties a folder that holds nothing but files called `names`, and removes `folders` as far as they are empty."""
    with contextlib.suppress(OSError):
        found = list(folder.iterdir())
        if {entry.name for entry in found} <= set(names):
            for entry in found:
                entry.unlink()
            for empty in folders:
                empty.rmdir()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "tolist") and not isinstance(value, str | bytes):
        return _finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _checked_donor(donor: Path, own: Path) -> Path:
    """A workdir to take stages from: made by the same versions of everything that decides the numbers.

    Raises:
        InputError: it is no workdir, this one, or one of other versions.
    """
    if donor == own:
        raise InputError(f"workdir {own} cannot take stages from itself: leave it out")
    if not (donor / "manifest.json").exists():
        raise InputError(f"{donor} is no workdir to take stages from (it has no manifest.json): check the path")
    changes = _differences(_read_manifest(donor / "manifest.json").get("versions", {}), versions())
    if changes:
        raise InputError(f"{donor} was made by other versions ({'; '.join(changes[:3])}): leave it out")
    return donor


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links
        shutil.copy2(source, target)


def _try_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
