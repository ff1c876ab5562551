"""Rotary position embeddings, with the five ways checkpoints stretch them to longer contexts.

Sources: RoFormer (arXiv 2104.09864, eq. 34), position interpolation (2306.15595), NTK-aware "dynamic" scaling,
YaRN (2309.00071, section 3), and the LLaMA 3.1 frequency bands. Frequencies follow transformers' float32 arithmetic.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from hrsa_jax.models.config import RopeConfig


def _base_frequencies(theta: float, head_dim: int) -> np.ndarray:
    """theta^(-2i/H) for i < H/2, float32 (H/2,)."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return (1.0 / (theta ** exponents.astype(np.float64)).astype(np.float32)).astype(np.float32)


def _llama3_frequencies(rope: RopeConfig, frequencies: np.ndarray) -> np.ndarray:
    """Long wavelengths are divided by `factor`, short ones kept, the band between interpolated."""
    assert rope.original_max_position_embeddings is not None
    context = np.float32(rope.original_max_position_embeddings)
    wavelengths = np.float32(2 * math.pi) / frequencies
    long = wavelengths > context / rope.low_freq_factor
    short = wavelengths < context / rope.high_freq_factor
    smooth = (context / wavelengths - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    between = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
    return np.where(long, frequencies / rope.factor, np.where(short, frequencies, between))


def _yarn_frequencies(rope: RopeConfig, frequencies: np.ndarray, head_dim: int) -> np.ndarray:
    """Dimensions that turn often are kept, those that turn less than once are interpolated, a ramp between."""
    assert rope.original_max_position_embeddings is not None
    context = rope.original_max_position_embeddings

    def dimension(rotations: float) -> float:
        return head_dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    span = high - low if high != low else 0.001
    ramp = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / span, 0, 1)
    return frequencies / rope.factor * ramp + frequencies * (1 - ramp)


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> tuple[np.ndarray, float]:
    """Inverse frequencies float32 (H/2,) and the factor on cos and sin (1 except for yarn).

    For "dynamic" these are the frequencies up to the trained length; `rope_tables` stretches them beyond it.
    """
    frequencies = _base_frequencies(rope.theta, head_dim)
    if rope.kind == "linear":
        frequencies = frequencies / np.float32(rope.factor)
    elif rope.kind == "llama3":
        frequencies = _llama3_frequencies(rope, frequencies)
    elif rope.kind == "yarn":
        frequencies = _yarn_frequencies(rope, frequencies, head_dim)
    return frequencies.astype(np.float32), rope.attention_factor if rope.kind == "yarn" else 1.0


def _segment_lengths(positions_BT: jax.Array, segment_ids_BT: jax.Array) -> jax.Array:
    """For every token, 1 + the largest position in its own segment of its own row: int32 (B, T)."""

    def row(positions_T: jax.Array, segments_T: jax.Array) -> jax.Array:
        # Segment ids lie in 0..T, one per text of the row.
        longest = jax.ops.segment_max(positions_T, segments_T, num_segments=positions_T.shape[0] + 1)
        return longest[segments_T] + 1

    return jax.vmap(row)(positions_BT, segment_ids_BT)


def rope_tables(
    rope: RopeConfig, head_dim: int, positions_BT: jax.Array, segment_ids_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """cos and sin of every position's angles, both float32 (B, T, 1, H/2).

    "dynamic" scaling depends on the length of the text, taken per segment: a text's states do not depend on what it
    shares a batch or a row with (transformers takes the length of the padded batch).
    """
    frequencies, scale = inverse_frequencies(rope, head_dim)
    positions = positions_BT.astype(jnp.float32)[..., None]
    if rope.kind == "dynamic":
        trained = float(rope.max_position_embeddings)
        lengths = jnp.maximum(_segment_lengths(positions_BT, segment_ids_BT).astype(jnp.float32), trained)
        stretch = rope.factor * lengths / trained - (rope.factor - 1)
        # theta * stretch^(H/(H-2)), to the power -2i/H, on top of the base frequencies
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / (head_dim - 2)
        angles = positions * (jnp.asarray(frequencies) * stretch[..., None] ** -exponents)
    else:
        angles = positions * jnp.asarray(frequencies)
    angles = angles[:, :, None, :]
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def apply_rope(x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the pairs (i, i + H/2) of every head (the Hugging Face layout); float32 in, float32 out."""
    first, second = jnp.split(x_BTNH, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
