"""Safetensors folders read through memory maps: slices come off the disk, nothing else is held.

Layout of a file: 8 bytes (length of the header), the header (JSON: name -> dtype, shape, byte range), the data. The
checks say which file is at fault and how; pickle files are never opened.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from hrsa_jax.runtime.errors import InputError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES: Mapping[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_LARGEST_HEADER = 100_000_000  # the format's own limit
_MOST_AXES = 32


@dataclass(frozen=True)
class TensorEntry:
    """One stored tensor: where it lies and what it is."""

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int  # of the first byte, in the file


class SafetensorsFolder:
    """The tensors of an HF folder by name; `read` gives slices of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = _weight_files(folder)
        self.entries: dict[str, TensorEntry] = {}
        for file, expected in self.files.items():
            found = _read_header(file)
            absent = sorted(set(expected or ()) - found.keys())
            if absent:
                raise InputError(f"{file} does not hold {_some(absent)}, although {INDEX} says so")
            self.entries |= found
        self._maps: dict[Path, np.memmap] = {}

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """The tensor's slice as a view on the file (in its stored dtype)."""
        entry = self.entries[name]
        if entry.file not in self._maps:
            self._maps[entry.file] = np.memmap(entry.file, dtype=np.uint8, mode="r")
        size = math.prod(entry.shape) * entry.dtype.itemsize
        flat = self._maps[entry.file][entry.offset : entry.offset + size]
        return flat.view(entry.dtype).reshape(entry.shape)[index]

    def where(self, name: str) -> str:
        """The file that holds a tensor, for error messages."""
        return str(self.entries[name].file)


def _some(names: list[str], limit: int = 5) -> str:
    """'a, b and 3 more'."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def read_json(path: Path) -> Any:
    """A JSON file of a model folder.

    Raises:
        InputError: unreadable or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: also a NUL in the name, a number too long
        raise InputError(f"{path} cannot be read as JSON ({error}): fetch the file again") from None


def _weight_files(folder: Path) -> dict[Path, list[str] | None]:
    """File -> the tensors the index promises in it (None without an index)."""
    if (folder / SINGLE).exists():
        return {folder / SINGLE: None}
    if (folder / INDEX).exists():
        return _read_index(folder)
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
    if "adapter_model.safetensors" in others:
        raise InputError(f"{folder} holds a LoRA adapter and no model: load its base model and add the adapter")
    if others:
        raise InputError(f"{folder} has {_some(others)} but neither {SINGLE} nor {INDEX}: rename or re-export it")
    if pickles:
        raise InputError(
            f"{folder} has only pickle weights ({_some(pickles)}), which are never read: convert them to safetensors"
        )
    raise InputError(f"{folder} has no weights: {SINGLE}, {INDEX} and *.gguf are all missing")


def _read_index(folder: Path) -> dict[Path, list[str] | None]:
    index = folder / INDEX
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no weight_map from tensor names to files: fetch the file again")
    files: dict[Path, list[str] | None] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or os.path.basename(file) != file or not file.endswith(".safetensors"):
            raise InputError(
                f"{index}: weight_map sends {name} to {file!r}, which is not a .safetensors file beside it"
            )
        expected = files.setdefault(folder / file, [])
        assert expected is not None
        expected.append(name)
    missing = sorted(path.name for path in files if not os.path.isfile(path))  # also for names no disk can hold
    if missing:
        raise InputError(f"{folder} lacks {_some(missing)}, which {INDEX} lists: the download is incomplete")
    return files


def _read_header(path: Path) -> dict[str, TensorEntry]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            raw = file.read(length) if 0 < length <= min(size - 8, _LARGEST_HEADER) else b""
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): fetch the file again") from None
    if size == 0:
        raise InputError(f"{path} is empty: fetch the file again")
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise InputError(f"{path} has no readable safetensors header, so it is truncated or another format") from None
    entries = {}
    for name, facts in header.items():
        if name != "__metadata__":
            entries[name] = _entry(path, name, facts, 8 + length, size)
    return entries


def _entry(path: Path, name: str, facts: Any, data: int, size: int) -> TensorEntry:
    try:
        shape, kind = tuple(facts["shape"]), facts["dtype"]
        first, last = facts["data_offsets"]
        # Negative or huge numbers would lead to bytes of other tensors, or to minutes of multiplying.
        known = isinstance(kind, str) and all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, first, last))
    except (KeyError, TypeError, ValueError):
        known = False
    if not known or len(shape) > _MOST_AXES:
        raise InputError(f"{path}: the header entry of {name} is not {{dtype, shape, data_offsets}}")
    if kind not in _DTYPES:
        raise InputError(
            f"{path}: {name} is stored as {kind}; supported are {', '.join(_DTYPES)} (no quantised weights)"
        )
    if last - first != math.prod(shape) * _DTYPES[kind].itemsize:
        raise InputError(f"{path}: {name} {shape} {kind} does not fill its {last - first} bytes: the file is damaged")
    if data + last > size:
        raise InputError(f"{path} is truncated: {name} ends at byte {data + last} of {size}: fetch the file again")
    return TensorEntry(path, shape, _DTYPES[kind], data + first)
