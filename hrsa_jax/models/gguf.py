"""GGUF files: the header read once with `struct`, tensors dequantised one at a time by the gguf package.

gguf.GGUFReader walks every token string through numpy and needs seconds; this reader needs a fraction of one. The
metadata becomes a config.json dict and goes through ModelConfig.from_hf, so that both formats are checked alike.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hrsa_jax.runtime.errors import InputError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DEEPEST = 8  # arrays of arrays; files hold plain ones
_MOST_AXES = 4  # ggml's limit
_F32, _Q4_0, _Q4_1, _Q8_0 = 0, 2, 3, 8  # ggml type numbers
_BLOCKS = {_Q4_0: 18, _Q4_1: 20, _Q8_0: 34}  # bytes of a block of 32 numbers, for the types decoded here

#: GGUF architecture -> config.json's model_type
_ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # Mistral files say llama

#: architecture key -> config.json field
_FIELDS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "attention.causal": "is_causal",
    "rope.freq_base": "rope_theta",
    "expert_count": "num_experts",
    "vocab_size": "vocab_size",
}
#: read below, or without effect on the forward pass
_OTHER_KEYS = {
    "rope.dimension_count",
    "attention.value_length",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.finetuned",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scale_linear",
    "expert_used_count",
    "tensor_data_layout",
    "pooling_type",
}
_POOLING = {1: "mean", 2: "cls", 3: "last"}


@dataclass(frozen=True)
class GGUFTensor:
    """One stored tensor; `shape` is in torch order (out, in)."""

    shape: tuple[int, ...]
    kind: int  # ggml type number
    offset: int
    size: int


class _Cursor:
    """Little-endian values read one after another; running off the end is reported as truncation."""

    def __init__(self, data: mmap.mmap, path: Path):
        self.data, self.path, self.at = data, path, 0

    def take(self, form: str) -> tuple[Any, ...]:
        try:
            values = struct.unpack_from("<" + form, self.data, self.at)
        except struct.error:
            raise InputError(f"{self.path} is truncated: its header ends at byte {len(self.data)}") from None
        self.at += struct.calcsize("<" + form)
        return values

    def string(self) -> str:
        (length,) = self.take("Q")
        raw = self.data[self.at : self.at + length]
        if len(raw) != length:
            raise InputError(f"{self.path} is truncated: its header ends at byte {len(self.data)}")
        self.at += length
        return raw.decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.take(_SCALARS[kind])[0]
        if kind != _ARRAY or depth > _DEEPEST:
            raise InputError(f"{self.path}: metadata of type {kind} at byte {self.at} is not GGUF, the file is damaged")
        item, count = self.take("IQ")
        if count > len(self.data) - self.at:  # an item has a byte at least
            raise InputError(f"{self.path} is truncated: it announces {count} items at byte {self.at}")
        if item in _SCALARS:
            return list(self.take(f"{count}{_SCALARS[item]}"))
        return [self.value(item, depth + 1) for _ in range(count)]


class GGUFFile:
    """A GGUF file's metadata and tensors.

    Attributes:
        metadata: key -> value (arrays as lists).
        entries: GGUF tensor name -> GGUFTensor.
        header_bytes: the file up to the tensor data, for hashing.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            if path.stat().st_size == 0:
                raise InputError(f"{path} is empty: fetch the file again")
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}): fetch the file again") from None
        cursor = _Cursor(self._data, path)
        if self._data[:4] != b"GGUF":
            raise InputError(f"{path} does not begin with the letters GGUF, so it is not a GGUF file")
        cursor.at = 4
        version, tensors, pairs = cursor.take("IQQ")
        if version not in (2, 3):
            raise InputError(f"{path} is GGUF version {version}; supported are little-endian versions 2 and 3")
        self.metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = cursor.string()
            self.metadata[key] = cursor.value(cursor.take("I")[0])
        self.entries = self._tensor_table(cursor, tensors)

    def _tensor_table(self, cursor: _Cursor, count: int) -> dict[str, GGUFTensor]:
        raw = []
        for _ in range(count):
            name = cursor.string()
            (dims,) = cursor.take("I")
            if dims > _MOST_AXES:
                raise InputError(f"{self.path}: {name} has {dims} axes and ggml knows {_MOST_AXES}, it is damaged")
            shape = tuple(reversed(cursor.take(f"{dims}Q")))  # ggml writes the fastest axis first
            raw.append((name, shape, *cursor.take("IQ")))
        alignment = self.metadata.get("general.alignment", 32) or 32
        if not isinstance(alignment, int) or alignment < 0:
            raise InputError(f"{self.path}: general.alignment is {alignment!r} and must be a positive whole number")
        start = -(-cursor.at // alignment) * alignment
        self.header_bytes = self._data[: cursor.at]
        entries = {}
        for name, shape, kind, offset in raw:
            size = self._bytes(name, shape, kind)
            if start + offset + size > len(self._data):
                raise InputError(
                    f"{self.path} is truncated: {name} ends at byte {start + offset + size} of {len(self._data)}"
                )
            entries[name] = GGUFTensor(shape, kind, start + offset, size)
        return entries

    def _bytes(self, name: str, shape: tuple[int, ...], kind: int) -> int:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise InputError(f"{self.path}: {name} has the unknown ggml type {kind}") from None
        if shape and shape[-1] % block:
            raise InputError(f"{self.path}: {name} {shape} is not a multiple of its block of {block}, it is damaged")
        return math.prod(shape) // block * size

    def read(self, name: str) -> np.ndarray:
        """The whole tensor, dequantised to float32, in torch's axis order."""
        entry = self.entries[name]
        raw = np.frombuffer(self._data, np.uint8, entry.size, entry.offset)
        if entry.kind == _F32:
            return raw.view(np.float32).reshape(entry.shape)
        if entry.kind in _BLOCKS:
            return _dequantize(raw, entry.kind).reshape(entry.shape)
        from gguf import quants
        from gguf.constants import GGMLQuantizationType

        try:
            values = quants.dequantize(raw.reshape(*entry.shape[:-1], -1), GGMLQuantizationType(entry.kind))
        except NotImplementedError:
            kind = GGMLQuantizationType(entry.kind).name
            raise InputError(f"{self.path}: {name} is stored as {kind}, which cannot be dequantised") from None
        return values.reshape(entry.shape)

    def where(self, name: str) -> str:
        """The file, for error messages."""
        return str(self.path)

    def pooling(self) -> str | None:
        """The pooling an embedding model's file states, if any."""
        kind = self.metadata.get(f"{self.metadata.get('general.architecture')}.pooling_type", 0)
        return _POOLING.get(kind) if isinstance(kind, int) else None


def _dequantize(raw: np.ndarray, kind: int) -> np.ndarray:
    """The three commonest block types, bit for bit as the gguf package has them, which goes 16 rows at a time.

    A block of 32 is a float16 scale (Q4_1: and offset), then 32 signed bytes, or 16 bytes of low and high nibbles.
    """
    blocks = raw.reshape(-1, _BLOCKS[kind])
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    if kind == _Q8_0:
        return blocks[:, 2:].view(np.int8) * scale
    header = 4 if kind == _Q4_1 else 2
    packed = blocks[:, header:]
    values = np.empty((len(blocks), 32), np.float32)
    values[:, :16] = packed & 15
    values[:, 16:] = packed >> 4
    if kind == _Q4_0:
        values -= 8
    values *= scale
    if kind == _Q4_1:
        values += blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
    return values


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undoes llama.cpp's interleaving of the rotary halves in q and k of llama files: (heads * H, ...) rows."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def config_fields(file: GGUFFile) -> dict[str, Any]:
    """The file's metadata as a config.json dict for ModelConfig.from_hf.

    Raises:
        InputError: an architecture or a key that is not supported.
    """
    metadata = file.metadata
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _ARCHITECTURES:
        raise InputError(
            f"{file.path}: general.architecture is {architecture!r}; supported are {', '.join(_ARCHITECTURES)}"
        )
    own = {k.removeprefix(architecture + "."): v for k, v in metadata.items() if k.startswith(architecture + ".")}
    unknown = sorted(own.keys() - _FIELDS.keys() - _OTHER_KEYS)
    if unknown:
        raise InputError(f"{file.path}: metadata {architecture}.{', '.join(unknown)} is not supported")
    fields: dict[str, Any] = {_FIELDS[key]: value for key, value in own.items() if key in _FIELDS}
    fields["model_type"] = _ARCHITECTURES[architecture]
    fields["tie_word_embeddings"] = "output.weight" not in file.entries
    if "token_embd.weight" in file.entries:
        fields.setdefault("vocab_size", file.entries["token_embd.weight"].shape[0])
    if architecture == "llama":
        fields["attention_bias"] = "blk.0.attn_output.bias" in file.entries
    if architecture == "qwen3":
        fields["attention_bias"] = "blk.0.attn_q.bias" in file.entries
    rotary = own.get("rope.dimension_count")
    if rotary is not None:
        fields.setdefault("head_dim", rotary)
        if rotary != fields["head_dim"]:
            if not all(isinstance(n, int) and n > 0 for n in (rotary, fields["head_dim"])):
                raise InputError(f"{file.path}: rope.dimension_count or attention.key_length is no positive number")
            fields["partial_rotary_factor"] = rotary / fields["head_dim"]
    if own.get("attention.value_length", fields.get("head_dim")) != fields.get("head_dim"):
        raise InputError(f"{file.path}: {architecture}.attention.value_length differs from key_length")
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        fields[f"{ours}_token_id"] = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
    fields["rope_scaling"] = _rope_scaling(file, own, fields)
    return fields


def _rope_scaling(file: GGUFFile, own: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = own.get("rope.scaling.type", "none")
    if "rope_freqs.weight" in file.entries:
        return _llama3_scaling(file, fields)
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": own.get("rope.scaling.factor")}
    if kind == "yarn":
        scaling |= {
            "original_max_position_embeddings": own.get("rope.scaling.original_context_length"),
            "beta_fast": own.get("rope.scaling.yarn_beta_fast"),
            "beta_slow": own.get("rope.scaling.yarn_beta_slow"),
        }
        if own.get("rope.scaling.attn_factor", 1.0) != 1.0:
            raise InputError(f"{file.path}: rope.scaling.attn_factor is not supported")
    return scaling


def _llama3_scaling(file: GGUFFile, fields: Mapping[str, Any]) -> dict[str, Any]:
    """LLaMA 3.1's bands, which GGUF keeps only as the divisor of every frequency: recovered, and checked."""
    from hrsa_jax.models.config import RopeConfig
    from hrsa_jax.models.rope import inverse_frequencies

    divisors = file.read("rope_freqs.weight")
    head_dim, theta = fields.get("head_dim"), fields.get("rope_theta")
    sound = divisors.size > 0 and bool(np.isfinite(divisors).all() and (divisors > 0.999).all())
    if (
        sound
        and isinstance(head_dim, int)
        and isinstance(theta, float)
        and 1 < theta < math.inf
        and divisors.shape == (head_dim // 2,)
    ):
        rope = RopeConfig("llama3", theta, round(float(divisors.max()), 3), original_max_position_embeddings=8192)
        plain, _ = inverse_frequencies(RopeConfig(theta=theta), head_dim)
        banded, _ = inverse_frequencies(rope, head_dim)
        if np.allclose(plain / banded, divisors, rtol=1e-4):
            return {k: v for k, v in rope.to_hf().items() if k != "rope_theta"}
    raise InputError(f"{file.path}: the tensor rope_freqs.weight is not LLaMA 3.1's scaling, which alone is supported")
