"""Activations on disk: of any other model (`.npy`, safetensors), and a store that keeps what models gave.

An encoder or a vision model takes part in a comparison through a file: (layers, rows, width), row i of both sides the
same sample. The store is a folder of such files, each named by the fingerprint of what made it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hrsa_jax.hrsa.states import TokenStates
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.workdir import fingerprint

SUFFIXES = (".npy", ".safetensors")


def save_states(states: TokenStates, path: str | Path, *, made_by: str | None = None) -> None:
    """Write activations as safetensors: tensors states, groups, and token_ids and positions where there are any.

    made_by: fingerprint of what gave them, kept in the file's metadata. The file appears whole or not at all.
    """
    from safetensors.numpy import save_file

    tensors = {
        "states": states.states_LND,
        "groups": states.groups_N,
        "token_ids": states.token_ids_N,
        "positions": states.positions_N,
    }
    given = {name: np.ascontiguousarray(value) for name, value in tensors.items() if value is not None}
    half_written = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.tmp")
    try:
        save_file(given, half_written, metadata=None if made_by is None else {"made_by": made_by})
        os.replace(half_written, path)
    finally:
        half_written.unlink(missing_ok=True)


def load_states(path: str | Path) -> TokenStates:
    """Activations of any model: safetensors as `save_states` writes (`states` suffices), or .npy.

    `states` (layers, rows, width), or (rows, width) for one layer. Without groups every row is a text of its own.
    Raises InputError naming the file.
    """
    file = Path(path)
    if not os.path.isfile(file):
        raise InputError(f"{file} does not exist; give a .npy or .safetensors file of activations.")
    try:
        if file.suffix == ".npy":
            # Through a map: a header that promises more than the file holds is refused before anything is allocated.
            tensors = {"states": np.load(file, mmap_mode="r", allow_pickle=False)}
        else:
            from safetensors.numpy import load_file

            tensors = load_file(file)
        if not np.can_cast(tensors["states"].dtype, np.float32, "same_kind") or not tensors["states"].size:
            raise InputError(f"{file} holds no numbers; save activations (layers, rows, width) as float32.")
        states = np.array(tensors["states"], np.float32)
        states = states[None] if states.ndim == 2 else states
        groups = tensors.get("groups", np.arange(states.shape[1] if states.ndim == 3 else 0))
        optional = [tensors.get(name) for name in ("token_ids", "positions")]
        return TokenStates(states, np.asarray(groups, np.int32), *optional)
    except KeyError:
        raise InputError(
            f"{file} holds no tensor named 'states'; save (layers, rows, width) under that name."
        ) from None
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{file} cannot be read as activations (layers, rows, width): {error}.") from error


def stored_states(folder: str | Path, made_by: Any, compute: Callable[[], TokenStates]) -> TokenStates:
    """Activations from the store in `folder`, computed and kept there if they are not.

    made_by: everything that decides them (model fingerprint, texts, attention, tokens a text) as JSON values. A file
    that cannot be read or was made by something else is computed again: a fingerprint, not a name, decides.
    """
    from safetensors import safe_open

    mark = fingerprint(made_by)
    path = Path(folder) / f"{mark}.safetensors"
    if path.exists():
        try:
            with safe_open(path, "numpy") as file:
                if (file.metadata() or {}).get("made_by") == mark:
                    return load_states(path)
        except Exception:  # cut short by a full disk, say: as good as absent
            path.unlink(missing_ok=True)
    states = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_states(states, path, made_by=mark)
    return states
