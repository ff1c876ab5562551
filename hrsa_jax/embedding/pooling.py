"""Pooling token states into one vector a text, for padded batches and for packed rows.

B batch, R rows, T tokens, S segments a row, D model width. Sums run in float32 whatever the states' dtype.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

Pooling = Literal["mean", "last", "cls", "weighted_mean"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


def pool(
    h_BTD: jax.Array, mask_BT: jax.Array, how: Pooling = "mean", *, pool_mask_BT: jax.Array | None = None
) -> jax.Array:
    """Pools each text of a padded batch; left and right padding give the same vectors.

    Args:
      h_BTD: token states.
      mask_BT: bool, the text's tokens (False = padding).
      how: "mean"; "last" or "cls", the last or first pooled token; "weighted_mean", weights 1, 2, 3, ... counted
        from the text's first token (as sentence-transformers counts them, prompt included).
      pool_mask_BT: bool, the tokens to pool (the text without its prompt); `mask_BT` when None.

    Returns:
      (B, D) float32; zeros for a text without a token to pool.
    """
    pooled = mask_BT if pool_mask_BT is None else pool_mask_BT
    return pool_segments(h_BTD, mask_BT.astype(jnp.int32), pooled, 1, how)[:, 0]


def pool_segments(
    h_RTD: jax.Array, segment_ids_RT: jax.Array, pool_mask_RT: jax.Array, num_segments: int, how: Pooling = "mean"
) -> jax.Array:
    """Pools every text of packed rows.

    Args:
      h_RTD: token states.
      segment_ids_RT: int32, 1..num_segments, 0 = padding; each text is one run of equal ids.
      pool_mask_RT: bool, the tokens to pool.
      num_segments: S.
      how: as in `pool`.

    Returns:
      (R, S, D) float32; zeros for a segment that does not exist or has no token to pool.
    """
    segments_S = jnp.arange(1, num_segments + 1)
    member_RST = segment_ids_RT[:, None, :] == segments_S[:, None]
    pooled_RST = member_RST & pool_mask_RT[:, None, :]
    if how == "mean":
        weights_RST = pooled_RST.astype(jnp.float32)
    elif how == "weighted_mean":
        order_RST = jnp.cumsum(member_RST, axis=-1)  # 1 at the text's first token
        weights_RST = jnp.where(pooled_RST, order_RST, 0).astype(jnp.float32)
    elif how == "last":
        following_RST = jnp.cumsum(pooled_RST[..., ::-1], axis=-1)[..., ::-1]
        weights_RST = (pooled_RST & (following_RST == 1)).astype(jnp.float32)
    elif how == "cls":
        preceding_RST = jnp.cumsum(pooled_RST, axis=-1)
        weights_RST = (pooled_RST & (preceding_RST == 1)).astype(jnp.float32)
    else:
        raise ValueError(f"how must be one of {', '.join(POOLINGS)}, got {how!r}")
    total_RS = weights_RST.sum(-1, keepdims=True)
    weights_RST = weights_RST / jnp.maximum(total_RS, 1.0)
    # One batched product with a (R, S, T) weight matrix: no (R, S, T, D) array, and exact sums on accelerators too.
    return jnp.einsum(
        "rst,rtd->rsd",
        weights_RST,
        h_RTD.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def l2_normalize(x_ND: jax.Array) -> jax.Array:
    """Rows scaled to length 1 in float32; a zero row stays zero (and its gradient finite)."""
    x_ND = jnp.asarray(x_ND, jnp.float32)
    squared_N1 = jnp.sum(x_ND * x_ND, axis=-1, keepdims=True)
    return x_ND * jax.lax.rsqrt(jnp.maximum(squared_N1, 1e-24))
