"""Texts to vectors: the encoder used by training-time evaluation, benchmarks and HRSA.

Distinct texts are tokenised once, packed into rows of 128, 256, 512, ... tokens (short texts fill the gaps of long
rows; rows are as long as wastes least), and run in batches of a few sizes, so that few programs are compiled. Weights
are arguments of the compiled function: a second model of the same architecture reuses it.

R rows, T tokens a row, S segments a row, L layers, D width, n texts.
"""

import functools
import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hrsa_jax.data.packing import PackedLayout, PackedRows, fill_rows, pack
from hrsa_jax.data.tokenize import TokenizedTexts, tokenize_texts
from hrsa_jax.embedding.pooling import POOLINGS, Pooling, pool_segments
from hrsa_jax.models.backbone import Backbone, load
from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.decoder import Decoder
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.mesh import batch_parts, shard_batch, to_host

SHORTEST_ROW = 128
MAX_SEGMENTS = 32  # texts a row
DEFAULT_MAX_LENGTH = 512
_TEXTS_AT_ONCE = 20_000  # tokenised and packed together
_SAMPLE = 512  # texts that a row length is tried on
_START_COST = {"float32": 1 / 32, "bfloat16": 1 / 8}  # of a batch, in full batches (CPU, SmolLM2)
_ATTENTION_COST = 1 / 2000  # of a token per token of its row, relative to the rest of the model (CPU, SmolLM2)


class _Batch(NamedTuple):
    rows: PackedRows
    texts: np.ndarray  # numbers of the texts in these rows
    slots: np.ndarray  # where each stands in the pooled (R * S, D) array


class Encoder:
    """Turns texts into vectors with any backbone or embedding model.

    What the arguments leave open comes from the model's sentence-transformers files, so that an exported model is
    read back as it was written; a plain backbone gets mean pooling, normalised vectors and its own attention mode.

    Args:
      source: a model source (folder, hub id, .gguf, package:NAME) or a loaded Backbone.
      attention: "causal" or "bidirectional".
      pooling: "mean", "last", "cls" or "weighted_mean".
      normalize: L2-normalise the vectors of `encode` (`hidden` never does).
      max_length: tokens kept of a text, prompt and special tokens included.
      dtype: of the computation; "float32" or "bfloat16" (sums stay float32).
      batch_tokens: token slots of a full batch.
      allow_empty: a text without any token gives a zero vector (as in sentence-transformers) instead of an error.

    Examples:
      >>> encoder = Encoder("base")
      >>> vectors = encoder.encode(["a query", "a text", "a query"])
      >>> vectors.shape == (3, encoder.dimension)
      True
      >>> round(float(vectors[0] @ vectors[2]), 4)  # vectors have length 1
      1.0
    """

    def __init__(
        self,
        source: str | Backbone,
        *,
        attention: Literal["causal", "bidirectional"] | None = None,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        max_length: int | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        batch_tokens: int = 4096,
        allow_empty: bool = False,
    ):
        self.backbone = load(source) if isinstance(source, str) else source
        stored = self.backbone.embedding
        longest = self.backbone.config.max_position_embeddings
        self.attention: str = attention or self.backbone.attention
        self.pooling: Any = pooling or (stored.pooling if stored else "mean")
        self.normalize = normalize if normalize is not None else (stored.normalize if stored else True)
        kept = stored.max_length if stored and stored.max_length else DEFAULT_MAX_LENGTH
        self.max_length = max_length or min(kept, longest)  # a tokenizer's limit may exceed the model's
        self.prompts: dict[str, str] = dict(stored.prompts) if stored else {}
        self._default_prompt = self.prompts.get(stored.default_prompt or "", "") if stored else ""
        self._pools_prompt = stored is not None and stored.include_prompt
        self.dtype, self.batch_tokens, self.allow_empty = dtype, batch_tokens, allow_empty
        if dtype not in _START_COST:
            raise InputError(f"dtype {dtype!r} is not known; it is one of {', '.join(_START_COST)}.")
        if self.pooling not in POOLINGS or self.attention not in ("causal", "bidirectional"):
            raise InputError(
                f"Pooling {self.pooling!r} with attention {self.attention!r} is not known; pooling is one of "
                f"{', '.join(POOLINGS)} and attention is causal or bidirectional."
            )
        if self.max_length > longest:
            raise InputError(
                f"max_length {self.max_length} exceeds the {longest} positions of {self.backbone.source}; lower it."
            )
        self._decoder = _cast_kernels(self.backbone.decoder, dtype) if dtype != "float32" else self.backbone.decoder
        sharding = self.backbone.decoder.embed[...].sharding
        mesh = getattr(sharding, "mesh", None)
        self._mesh = mesh if isinstance(mesh, jax.sharding.Mesh) else None

    @property
    def dimension(self) -> int:
        """D, the length of the vectors."""
        return int(self.backbone.config.hidden_size)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with the checkpoint and with every setting that changes the vectors."""
        parts = [self.backbone.fingerprint, self.attention, self.pooling, self.normalize, self.max_length, self.dtype]
        prompts = [self._pools_prompt, self._default_prompt, sorted(self.prompts.items())]
        text = json.dumps([*parts, *prompts])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def encode(self, texts: Sequence[str], prompt: str | None = None, *, pool_from: int | None = None) -> np.ndarray:
        """Vectors of n texts, float32 (n, D), in their order; (0, D) for no texts.

        Args:
          texts: equal texts are computed once.
          prompt: put in front of every text and left out of the pool (`query_prompt` makes one). None is the
            model's stored default prompt, which is nearly always none at all.
          pool_from: number of leading tokens to leave out of the pool, instead of the prompt's own span.

        Raises:
          InputError: a text that is no string or has no tokens (see `allow_empty`), or a vector that is not finite;
            the first such text is named.
        """
        vectors_ND = self._run(texts, prompt, pool_from, hidden=False)[0]
        if self.normalize:
            vectors_ND /= np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)
        return vectors_ND

    def hidden(self, texts: Sequence[str], prompt: str | None = None) -> np.ndarray:
        """Pooled hidden states of every layer, float32 (L+1, n, D), not normalised; errors as in `encode`."""
        return self._run(texts, prompt, None, hidden=True)

    def _run(self, texts: Sequence[str], prompt: str | None, pool_from: int | None, *, hidden: bool) -> np.ndarray:
        if isinstance(texts, str):
            raise InputError("encode was given one text where a list of texts was expected; write [text].")
        distinct = list(dict.fromkeys(texts))
        states = self.backbone.config.num_layers + 1 if hidden else 1
        out_LND = np.zeros((states, len(distinct), self.dimension), np.float32)
        for start in range(0, len(distinct), _TEXTS_AT_ONCE):
            block = distinct[start : start + _TEXTS_AT_ONCE]
            tokens = self._tokenize(block, prompt)
            self._refuse_empty(tokens, block, texts)
            if pool_from is not None:
                tokens = replace(tokens, pool_start=np.minimum(pool_from, tokens.lengths))
            self._fill(out_LND[:, start : start + len(block)], tokens, hidden)
        bad_N = ~np.isfinite(out_LND).all(axis=(0, 2))
        if bad_N.any():
            text = self._first_bad([distinct[index] for index in np.flatnonzero(bad_N)], prompt)
            raise InputError(
                f"{self.backbone.source} gives NaN or infinite values for text {list(texts).index(text)} "
                f"({text[:60]!r}); check the model's weights, or use dtype float32."
            )
        if len(distinct) == len(texts):
            return out_LND
        place = {text: index for index, text in enumerate(distinct)}
        return out_LND[:, [place[text] for text in texts]]

    def _first_bad(self, suspects: Sequence[str], prompt: str | None) -> str:
        """The first text that is bad on its own: NaN spreads to the other texts of a packed row (0 x NaN)."""
        vector_LND = np.zeros((1, 1, self.dimension), np.float32)
        for text in suspects:
            self._fill(vector_LND, self._tokenize([text], prompt), hidden=False)
            if not np.isfinite(vector_LND).all():
                return text
        return suspects[0]

    def _tokenize(self, texts: Sequence[str], prompt: str | None) -> TokenizedTexts:
        head = self._default_prompt if prompt is None else prompt
        tokens = tokenize_texts(self.backbone.tokenizer, texts, prompt=head, max_length=self.max_length)
        if self._pools_prompt:  # some stored models want it so
            tokens = replace(tokens, pool_start=np.zeros(len(texts), np.int32))
        return tokens

    def _refuse_empty(self, tokens: TokenizedTexts, block: Sequence[str], texts: Sequence[str]) -> None:
        if tokens.empty.any() and not self.allow_empty:
            text = block[int(tokens.empty.argmax())]
            raise InputError(
                f"Text {list(texts).index(text)} ({text[:60]!r}) has no tokens; drop it or pass allow_empty=True."
            )

    def _fill(self, out_LND: np.ndarray, tokens: TokenizedTexts, hidden: bool) -> None:
        """Runs all batches; up to two are in flight, so that the host prepares one while another is computed."""
        pending: deque[tuple[_Batch, jax.Array]] = deque()
        for batch in self._batches(tokens):
            rows = shard_batch(self._mesh, batch.rows) if self._mesh is not None else batch.rows
            with jax.set_mesh(self._mesh) if self._mesh is not None else nullcontext():
                pooled = _pooled_rows(
                    self._decoder,
                    rows,
                    attention=self.attention,
                    how=self.pooling,
                    dtype=self.dtype,
                    hidden=hidden,
                )
            pending.append((batch, pooled))
            if len(pending) > 2:
                _collect(out_LND, *pending.popleft())
        while pending:
            _collect(out_LND, *pending.popleft())

    def _batches(self, tokens: TokenizedTexts) -> Iterator[_Batch]:
        devices = 1 if self._mesh is None else batch_parts(self._mesh.shape)
        for layout, texts in _layouts(tokens.lengths, np.flatnonzero(~tokens.empty)):
            full = -(-max(1, self.batch_tokens // layout.row_length) // devices) * devices
            sizes = _batch_sizes(layout.rows, full, devices, start=full * _START_COST[self.dtype])
            layout = replace(layout, rows=sum(sizes))
            rows = fill_rows(layout, [tokens.ids[text] for text in texts], tokens.pool_start[texts])
            slots, first = layout.slots(MAX_SEGMENTS), 0
            for size in sizes:
                here = (layout.row_N >= first) & (layout.row_N < first + size)
                part = PackedRows(*(array[first : first + size] for array in rows))
                yield _Batch(part, texts[here], slots[here] - first * MAX_SEGMENTS)
                first += size


def _batch_sizes(rows: int, full: int, devices: int, *, start: float) -> list[int]:
    """Batches of `full` rows, its half, quarter or eighth that hold `rows` rows at the least cost.

    A batch costs its rows, empty ones too, and `start` rows for being run at all (weights are read anew).
    """
    sizes = sorted({-(-max(1, full // part) // devices) * devices for part in (1, 2, 4, 8)})
    batches = [full] * (rows // full)
    rest = rows % full
    cost, choice = [0.0] + [float("inf")] * rest, [0] * (rest + 1)
    for held in range(1, rest + 1):
        for size in sizes:
            total = cost[max(0, held - size)] + size + start
            if total < cost[held]:
                cost[held], choice[held] = total, size
    while rest > 0:
        batches.append(choice[rest])
        rest -= choice[rest]
    return sorted(batches, reverse=True)


def _layouts(length_N: np.ndarray, texts: np.ndarray) -> Iterator[tuple[PackedLayout, np.ndarray]]:
    """Longest rows first: (layout, numbers of the texts in it); short texts fill what long ones leave free."""
    while texts.size:
        row_length = SHORTEST_ROW
        while row_length < length_N[texts].max():
            row_length *= 2
        own_rows = length_N[texts] > (row_length // 2 if row_length > SHORTEST_ROW else 0)
        row_length = min(row_length, 2 * row_length, key=lambda length: _cost(length_N[texts[own_rows]], length))
        layout = pack(length_N[texts], row_length, max_segments=MAX_SEGMENTS, filler_N=~own_rows)
        placed = layout.row_N >= 0
        yield (
            replace(
                layout,
                row_N=layout.row_N[placed],
                segment_N=layout.segment_N[placed],
                start_N=layout.start_N[placed],
                length_N=layout.length_N[placed],
            ),
            texts[placed],
        )
        texts = texts[~placed]


def _cost(length_N: np.ndarray, row_length: int) -> float:
    """What a sample of these texts costs in rows of this length."""
    sample_N = length_N[:: -(-length_N.size // _SAMPLE)]
    rows = pack(sample_N, row_length, max_segments=MAX_SEGMENTS).rows
    return rows * row_length * (1 + row_length * _ATTENTION_COST)


def _collect(out_LND: np.ndarray, batch: _Batch, pooled: jax.Array) -> None:
    host = to_host(pooled)
    out_LND[:, batch.texts] = host.reshape(host.shape[0], -1, host.shape[-1])[:, batch.slots]


@functools.partial(jax.jit, static_argnames=("attention", "how", "dtype", "hidden"))
def _pooled_rows(
    decoder: Decoder, rows: PackedRows, *, attention: str, how: Pooling, dtype: str, hidden: bool
) -> jax.Array:
    """Pooled states of every text slot: float32 (L+1, R, S, D) when `hidden`, else (1, R, S, D)."""

    def pooled(h_RTD: jax.Array) -> jax.Array:
        return pool_segments(h_RTD, rows.segment_ids_RT, rows.pool_mask_RT, MAX_SEGMENTS, how)

    output = decoder(
        rows.tokens_RT,
        rows.segment_ids_RT,
        rows.positions_RT,
        attention=attention,
        collect=pooled if hidden else None,
        dtype=jnp.dtype(dtype),
    )
    return output.collected if hidden else pooled(output.last_BTD)[None]


def working_memory(
    config: ModelConfig, *, rows: int, row_length: int, attention: str, dtype: Literal["float32", "bfloat16"]
) -> int:
    """Bytes that encoding a batch of this shape needs beside the weights, as the compiler counts them.

    Nothing is loaded or run; compiling takes some seconds.
    """
    decoder = nnx.eval_shape(lambda: Decoder(config, dtype=jnp.float32))
    shape = jax.ShapeDtypeStruct((rows, row_length), jnp.int32)
    batch = PackedRows(shape, shape, shape, jax.ShapeDtypeStruct((rows, row_length), jnp.bool_))
    settings: dict[str, Any] = {"attention": attention, "how": "mean", "dtype": dtype, "hidden": False}
    decoder = jax.eval_shape(functools.partial(_cast_kernels, dtype=dtype), decoder)
    memory: Any = _pooled_rows.lower(decoder, batch, **settings).compile().memory_analysis()
    return int(memory.temp_size_in_bytes + memory.output_size_in_bytes)


def _cast_kernels(decoder: Decoder, dtype: str) -> Decoder:
    """The same decoder with the matrices of its linear layers in `dtype`: cast once here, not in every batch."""

    def cast(path: Any, leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if "kernel" in jax.tree_util.keystr(path) else leaf

    return jax.tree_util.tree_map_with_path(cast, decoder)
