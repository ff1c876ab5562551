"""Grouped-query attention over packed or padded rows, in a few interchangeable implementations.

Shapes: q_BTNH, k_BSKH, v_BSKH with N = K * G query heads; kv heads are never repeated. Segment ids say which tokens
see each other (equal ids do); 0 is padding. Scores, softmax and sums are float32 whatever the operands are, and the
division by the softmax sum comes last, on (T, H) numbers instead of (T, S).

Implementations: "xla" holds all scores of a layer; "blocked" works through BLOCK queries at a time against only the
keys that a causal mask or window leaves visible; "rows" does so for a few rows at a time, so that scores stay in a
CPU's cache (2 to 3 times as fast there as "xla"); "cudnn" (GPU, bf16/fp16) and "splash" (TPU) are fused kernels chosen
by name. "auto" is "rows" on one CPU device, else "xla" up to 2 * BLOCK tokens and "blocked" beyond.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Attention = Literal["causal", "bidirectional"]
Implementation = Literal["auto", "xla", "blocked", "rows", "cudnn", "splash", "splash_interpret"]

BLOCK = 128  # queries at a time
TOKENS_AT_ONCE = 512  # of "rows"
_HIDDEN = -1e30  # finite, so that a fully hidden row gives numbers and not NaN


def visible(
    distance: jax.Array | np.ndarray, attention: str, window: int | jax.Array | None
) -> jax.Array | np.ndarray | bool:
    """Which key a query may see, given distance = query index - key index (any shape) -> bool, same shape.

    A window W means distance < W when causal and |distance| <= W when bidirectional, as transformers has it.
    """
    if attention == "causal":
        seen = distance >= 0
        return seen if window is None else seen & (distance < window)
    return True if window is None else (distance <= window) & (-distance <= window)


def _scores(q_BTKGH: jax.Array, k_BSKH: jax.Array) -> jax.Array:
    return jnp.einsum("btkgh,bskh->bkgts", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)


def _group(q_BTNH: jax.Array, num_kv_heads: int) -> jax.Array:
    B, T, N, H = q_BTNH.shape
    return q_BTNH.reshape(B, T, num_kv_heads, N // num_kv_heads, H)


def _masked_attention(q_BTKGH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Softmax attention under a boolean mask -> float32 (B, T, N, H); the queries are already scaled."""
    scores = jnp.where(mask_BTS[:, None, None], _scores(q_BTKGH, k_BSKH), _HIDDEN)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total_BTKG = weights.sum(-1).transpose(0, 3, 1, 2)
    mixed = jnp.einsum("bkgts,bskh->btkgh", weights.astype(v_BSKH.dtype), v_BSKH, preferred_element_type=jnp.float32)
    B, T, K, G, H = q_BTKGH.shape
    return (mixed / total_BTKG[..., None]).reshape(B, T, K * G, H)


def _xla(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array,
    attention: str,
    window: int | jax.Array | None,
) -> jax.Array:
    """The reference: every score of the layer at once."""
    index = np.arange(q_BTNH.shape[1])
    same = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    mask = same & visible(index[:, None] - index[None, :], attention, window)
    return _masked_attention(_group(q_BTNH, k_BTKH.shape[2]), k_BTKH, v_BTKH, mask)


def _blocked(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array,
    attention: str,
    window: int | jax.Array | None,
) -> jax.Array:
    """BLOCK queries at a time, against only those keys that a static mask leaves visible."""
    q_BTKGH = _group(q_BTNH, k_BTKH.shape[2])
    outputs = []
    for queries, keys, seen_QS in _blocks(q_BTNH.shape[1], attention, window):
        same_BQS = segment_ids_BT[:, queries, None] == segment_ids_BT[:, None, keys]
        outputs.append(_masked_attention(q_BTKGH[:, queries], k_BTKH[:, keys], v_BTKH[:, keys], same_BQS & seen_QS))
    return jnp.concatenate(outputs, axis=1)


def _blocks(length: int, attention: str, window: int | jax.Array | None) -> list[tuple[slice, slice, Any]]:
    """(queries, the keys that causality or the window leaves them, which of these each query may see) of every block.

    A traced window (mixed layers) cuts no keys off.
    """
    reach = window if isinstance(window, int) else None
    blocks = []
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        first = 0 if reach is None else max(0, start - reach)
        last = stop if attention == "causal" else length if reach is None else min(length, stop + reach)
        distance_QS = np.arange(start, stop)[:, None] - np.arange(first, last)[None, :]
        blocks.append((slice(start, stop), slice(first, last), visible(distance_QS, attention, window)))
    return blocks


def _rows(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array,
    attention: str,
    window: int | jax.Array | None,
) -> jax.Array:
    """TOKENS_AT_ONCE tokens' rows at a time, one after the other.

    Products are float32 whatever the operands are: at these sizes a CPU multiplies bfloat16 more slowly.
    """
    T, N, H = q_BTNH.shape[1:]
    K = k_BTKH.shape[2]

    def one(row: tuple[jax.Array, jax.Array, jax.Array, jax.Array]) -> jax.Array:
        q_TNH, k_TKH, v_TKH = (array.astype(jnp.float32) for array in row[:3])
        segment_ids_T = row[3]
        q_KGTH = q_TNH.reshape(T, K, N // K, H).transpose(1, 2, 0, 3)
        k_KTH, v_KTH = k_TKH.swapaxes(0, 1), v_TKH.swapaxes(0, 1)
        outputs = []
        for queries, keys, seen_QS in _blocks(T, attention, window):
            same_QS = segment_ids_T[queries, None] == segment_ids_T[None, keys]
            bias_QS = jnp.where(same_QS & seen_QS, 0.0, _HIDDEN)  # a sum over all heads is faster than a select in each
            q_KMH = q_KGTH[:, :, queries].reshape(K, -1, H)  # all query heads of a kv head in one product
            scores_KMS = jnp.einsum("kmh,ksh->kms", q_KMH, k_KTH[:, keys])
            scores_KGQS = scores_KMS.reshape(K, N // K, *bias_QS.shape) + bias_QS
            weights = jnp.exp(scores_KGQS - jax.lax.stop_gradient(scores_KGQS.max(-1, keepdims=True)))
            weights_KMS = weights.reshape(scores_KMS.shape)
            mixed_KMH = jnp.einsum("kms,ksh->kmh", weights_KMS, v_KTH[:, keys])
            outputs.append((mixed_KMH / weights_KMS.sum(-1, keepdims=True)).reshape(K, N // K, -1, H))
        return jnp.concatenate(outputs, axis=2).transpose(2, 0, 1, 3).reshape(T, N, H)

    rows = (q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)
    at_once = min(max(1, TOKENS_AT_ONCE // T), q_BTNH.shape[0])
    return jax.lax.map(one, rows, batch_size=at_once)


def _cudnn(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array,
    attention: str,
    window: int | jax.Array | None,
) -> jax.Array:
    """cuDNN's fused kernel: one text per row, padded on the right (lengths instead of a mask), bf16 or fp16."""
    if window is not None:
        raise ValueError("implementation 'cudnn' has no sliding windows; use 'xla' or 'blocked'")
    lengths_B = (segment_ids_BT != 0).sum(-1).astype(jnp.int32)
    return jax.nn.dot_product_attention(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        scale=1.0,
        is_causal=attention == "causal",
        query_seq_lengths=lengths_B,
        key_value_seq_lengths=lengths_B,
        implementation="cudnn",
    ).astype(jnp.float32)


def _splash(interpret: bool) -> Callable[..., jax.Array]:
    """TPU splash attention with segment ids; T must be a multiple of 128."""

    def attend(
        q_BTNH: jax.Array,
        k_BTKH: jax.Array,
        v_BTKH: jax.Array,
        segment_ids_BT: jax.Array,
        attention: str,
        window: int | jax.Array | None,
    ) -> jax.Array:
        from jax.experimental.pallas.ops.tpu import splash_attention as splash

        T, N, K = q_BTNH.shape[1], q_BTNH.shape[2], k_BTKH.shape[2]
        if T % 128:
            raise ValueError(f"implementation 'splash' needs rows of a multiple of 128 tokens, not {T}")
        if window is not None and not isinstance(window, int):
            raise ValueError("implementation 'splash' needs the same window on all layers; use 'blocked'")
        mask: splash.Mask
        if window is not None:
            reach = (window - 1, 0) if attention == "causal" else (window, window)
            mask = splash.LocalMask((T, T), reach, 0)
        else:
            mask = splash.CausalMask((T, T)) if attention == "causal" else splash.FullMask((T, T))
        block = splash.BlockSizes.get_default() if T >= 512 else splash.BlockSizes(block_q=128, block_kv=128)
        kernel = splash.make_splash_mqa_single_device(
            splash.MultiHeadMask([mask] * (N // K)), block_sizes=block, interpret=interpret
        )
        q_BKGTH = _group(q_BTNH, K).transpose(0, 2, 3, 1, 4)
        segments = splash.SegmentIds(q=segment_ids_BT, kv=segment_ids_BT)
        over_kv_heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
        out_BKGTH = jax.vmap(over_kv_heads)(
            q_BKGTH, k_BTKH.transpose(0, 2, 1, 3), v_BTKH.transpose(0, 2, 1, 3), segments
        )
        return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(q_BTNH.shape).astype(jnp.float32)

    return attend


_IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "xla": _xla,
    "blocked": _blocked,
    "rows": _rows,
    "cudnn": _cudnn,
    "splash": _splash(interpret=False),
    "splash_interpret": _splash(interpret=True),
}


def attend(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array,
    *,
    attention: str,
    window: int | jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Self-attention of whole rows: q (B, T, N, H), k and v (B, T, K, H), ids int32 (B, T) -> float32 (B, T, N, H).

    Queries come in scaled by H^-1/2. `window` may be a traced scalar where layers differ.

    Raises:
        ValueError: unknown attention or implementation, or one that cannot do what is asked.
    """
    if attention not in ("causal", "bidirectional"):
        raise ValueError(f"attention is {attention!r}; use 'causal' or 'bidirectional'")
    if implementation == "auto":
        implementation = _automatic(q_BTNH.shape[1])
    if implementation not in _IMPLEMENTATIONS:
        raise ValueError(f"implementation is {implementation!r}; known are auto, {', '.join(_IMPLEMENTATIONS)}")
    return _IMPLEMENTATIONS[implementation](q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, attention, window)


def _automatic(length: int) -> str:
    one_device = jax.sharding.get_abstract_mesh().empty  # rows that are spread over devices are not walked one by one
    if one_device and jax.default_backend() == "cpu":
        return "rows"
    return "xla" if length <= 2 * BLOCK else "blocked"
