"""Checkpoints <-> the decoder's arrays: loading straight into shardings, and saving as a Hugging Face folder.

Nothing is drawn or allocated before a value is there: the decoder is built abstractly, every mismatch between its
parameters and the checkpoint is collected into one error, and each array is then filled shard by shard.
"""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.families import FAMILIES, TensorRule
from hrsa_jax.models.gguf import GGUFFile, unpermute
from hrsa_jax.models.safetensors_files import SINGLE
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.mesh import named_sharding, to_host

Index = tuple[slice, ...]
_THREADS = 4  # layers read (and dequantised) side by side

#: tensors some checkpoints carry that hold nothing of their own
_DERIVED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", "rope_freqs.weight")


class Entry(Protocol):
    """What a checkpoint says of a tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class Checkpoint(Protocol):
    """Named tensors in torch's layout, read by slice."""

    @property
    def entries(self) -> Mapping[str, Entry]: ...

    def read(self, name: str, index: Index = ()) -> np.ndarray: ...

    def where(self, name: str) -> str: ...


class GGUFCheckpoint:
    """A GGUF file as a Checkpoint: whole tensors are dequantised, q and k of llama files put back in order.

    With `keep`, the tensors of one parameter stay until another parameter is read: shards are cut from them.
    """

    def __init__(self, file: GGUFFile, config: ModelConfig, *, keep: bool = False):
        self.file, self.config, self.keep = file, config, keep
        self._kept: dict[str, np.ndarray] = {}
        self.entries: Mapping[str, Entry] = file.entries
        self.where = file.where

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """Dequantised float32 slice."""
        tensor = self._kept.get(name)
        if tensor is None:
            tensor = self._tensor(name)
            if self.keep:
                parameter = name.split(".", 2)[-1]
                for other in [kept for kept in list(self._kept) if kept.split(".", 2)[-1] != parameter]:
                    self._kept.pop(other, None)
                self._kept[name] = tensor
        return tensor[index]

    def _tensor(self, name: str) -> np.ndarray:
        tensor = self.file.read(name)
        if FAMILIES[self.config.family].gguf_permuted:
            if ".attn_q." in name:
                tensor = unpermute(tensor, self.config.num_heads)
            elif ".attn_k." in name:
                tensor = unpermute(tensor, self.config.num_kv_heads)
        return tensor


@dataclass(frozen=True)
class _Target:
    """One decoder parameter and the checkpoint tensors (one per layer, or one) that fill it."""

    path: str
    names: tuple[str, ...]
    stacked: bool
    transpose: bool
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    units: tuple[int, ...]

    def stored_shape(self) -> tuple[int, ...]:
        """The shape each tensor has in the checkpoint."""
        shape = self.shape[1:] if self.stacked else self.shape
        return shape[::-1] if self.transpose else shape


def tensor_names(config: ModelConfig, rule: TensorRule, *, style: str) -> tuple[str, ...]:
    """The names of a rule's tensors: style "hf" (with the model. prefix), "hf-base" (without) or "gguf"."""
    name = rule.gguf if style == "gguf" else rule.hf
    if style == "hf" and name != "lm_head.weight":
        name = "model." + name
    if "{layer}" not in name:
        return (name,)
    return tuple(name.format(layer=i) for i in range(config.num_layers))


def _targets(config: ModelConfig, state: Any, style: str) -> list[_Target]:
    rules = FAMILIES[config.family].tensors
    targets = []
    for keys, variable in nnx.to_flat_state(state):
        path = ".".join(str(key) for key in keys)
        rule = rules[path]
        metadata = variable.get_metadata()
        targets.append(
            _Target(
                path=path,
                names=tensor_names(config, rule, style=style),
                stacked="{layer}" in rule.hf,
                transpose=rule.transpose,
                shape=tuple(variable.get_value().shape),
                axes=metadata["logical_axes"],
                units=metadata["units"],
            )
        )
    return targets


def _check(targets: list[_Target], checkpoint: Checkpoint, config: ModelConfig, where: str) -> None:
    """Collects every missing, misshapen and unexpected tensor into one error."""
    problems, expected = [], set[str]()
    for target in targets:
        for name in target.names:
            expected.add(name)
            entry = checkpoint.entries.get(name)
            if entry is None:
                problems.append(f"{name} is missing")
            elif tuple(entry.shape) != target.stored_shape():
                wanted = f"the config makes it {target.stored_shape()}"
                problems.append(f"{name} has shape {tuple(entry.shape)} in {checkpoint.where(name)} but {wanted}")
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    for name in checkpoint.entries:
        if name not in expected | tied and not name.endswith(_DERIVED):
            problems.append(f"{name} is not part of a {config.family} model with this config")
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise InputError(f"{where} does not fit its config in {len(problems)} tensor(s): {shown}")


def _finite(values: np.ndarray) -> bool:
    # One pass and no temporary; only a non-finite sum needs the second look.
    return bool(np.isfinite(np.sum(values, dtype=np.float32)) or np.isfinite(values.astype(np.float32)).all())


def _filler(target: _Target, checkpoint: Checkpoint, dtype: Any) -> Callable[[Any], np.ndarray]:
    """The callback that builds any slice of one parameter."""

    def copy(name: str, index: Index, out: np.ndarray) -> None:
        stored = checkpoint.read(name, index[::-1] if target.transpose else index)
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(out, stored.T if target.transpose else stored, casting="unsafe")
            if not _finite(out):
                raise InputError(f"{checkpoint.where(name)}: {name} holds NaN or infinite values")

    def fill(index: Index) -> np.ndarray:
        full = tuple(slice(*piece.indices(size)) for piece, size in zip(index, target.shape, strict=True))
        out = np.empty([piece.stop - piece.start for piece in full], dtype)
        if not target.stacked:
            copy(target.names[0], full, out)
            return out
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda name, row: copy(name, full[1:], row), target.names[full[0]], out))
        return out

    return fill


def _place(shape: tuple[int, ...], sharding: Sharding, fill: Callable[[Index], np.ndarray]) -> jax.Array:
    """One shard after another, so that the host holds one beyond what the devices have.

    jax.make_array_from_callback would build all shards of the parameter before it hands over the first.
    """
    pieces = [
        jax.block_until_ready(jax.device_put(fill(index), device))
        for device, index in sharding.addressable_devices_indices_map(shape).items()
        if index is not None
    ]
    return jax.make_array_from_single_device_arrays(shape, sharding, pieces)


def stored_parameters(
    config: ModelConfig, checkpoint: Checkpoint, *, where: str
) -> tuple[ModelConfig, dict[str, tuple[str, ...]]]:
    """Reads headers only: the config as the tensors complete it, every decoder parameter and the tensors that fill it.

    Raises:
        InputError: tensors missing, unexpected or misshapen (all listed at once).
    """
    config, _, _, targets = _fit(config, checkpoint, where)
    return config, {target.path: target.names for target in targets}


def _fit(config: ModelConfig, checkpoint: Checkpoint, where: str) -> tuple[ModelConfig, Any, Any, list[_Target]]:
    """The config, the decoder's graph and abstract state, where each parameter lies; all mismatches in one error."""
    style = "gguf" if isinstance(checkpoint, GGUFCheckpoint) else "hf"
    if style == "hf" and "embed_tokens.weight" in checkpoint.entries:
        style = "hf-base"
        if not config.tie_word_embeddings and "lm_head.weight" not in checkpoint.entries:
            config = replace(config, has_head=False)
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(config)))
    targets = _targets(config, state, style)
    _check(targets, checkpoint, config, where)
    return config, graph, state, targets


def load_weights(
    config: ModelConfig,
    checkpoint: Checkpoint,
    *,
    where: str,
    mesh: Mesh | None = None,
    dtype: Any = np.float32,
) -> Decoder:
    """A decoder with the checkpoint's values, laid out on `mesh` by the RULES of runtime/mesh.py.

    No device ever holds an unsharded array, and the host one shard beyond those (GGUF: one parameter).

    Args:
        where: names the checkpoint in errors.
        dtype: of the parameters; None keeps what the checkpoint has (float32 for GGUF).

    Raises:
        InputError: tensors missing, unexpected, misshapen (all listed at once), or not finite.
    """
    config, graph, state, targets = _fit(config, checkpoint, where)
    if dtype is None:
        dtype = getattr(checkpoint.entries[targets[0].names[0]], "dtype", np.float32)
    arrays = {}
    for target in targets:
        sharding: Sharding = (
            SingleDeviceSharding(jax.devices()[0])
            if mesh is None
            else named_sharding(mesh, target.axes, target.shape, target.units)
        )
        arrays[target.path] = _place(target.shape, sharding, _filler(target, checkpoint, np.dtype(dtype)))
    filled = [(keys, v.replace(arrays[".".join(map(str, keys))])) for keys, v in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(filled))


def save_hf(decoder: Decoder, folder: str | Path, *, dtype: Any = None) -> None:
    """Writes config.json and model.safetensors that transformers reads; `dtype` None keeps the parameters' own.

    Raises:
        InputError: the decoder still carries LoRA adapters (merge them first).
    """
    import ml_dtypes
    from safetensors.numpy import save_file

    config, folder = decoder.config, Path(folder)
    state = nnx.to_flat_state(nnx.state(decoder))
    rules = FAMILIES[config.family].tensors
    tensors: dict[str, np.ndarray] = {}
    for keys, variable in state:
        rule = rules.get(".".join(str(key) for key in keys))
        if rule is None:
            raise InputError("this decoder carries LoRA adapters: merge them (merge_lora) before saving a full model")
        values = to_host(variable.get_value())
        values = values if dtype is None else values.astype(dtype)
        names = tensor_names(config, rule, style="hf" if config.has_head else "hf-base")
        for name, value in zip(names, values if "{layer}" in rule.hf else [values], strict=True):
            tensors[name] = np.ascontiguousarray(value.T if rule.transpose else value)
    stored = next(iter(tensors.values())).dtype
    spelled = {"float32": "float32", "float16": "float16", np.dtype(ml_dtypes.bfloat16).name: "bfloat16"}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    fields = config.to_hf() | {"dtype": spelled[stored.name]}
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
