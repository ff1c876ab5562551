"""Sampling with a static-shape cache: prefill and decoding are one compiled program per (rows, prompt length) bucket.

Decoding is a single `lax.while_loop` that ends when every row has: no round trip to the host per token. Prompts are
padded on the left, so that all rows write the same slot. Each prompt has its own random stream, so that a sample does
not depend on which prompts share its batch.

B rows, T prompt tokens, N new tokens, V vocabulary, K stop ids.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hrsa_jax.models.lora import stacked_linears

if TYPE_CHECKING:
    from hrsa_jax.models.decoder import Decoder

_SMALL, _CHUNK = 32, 128  # prompt lengths are rounded up to these; longer prompts are prefilled CHUNK tokens at a time


@dataclass(frozen=True)
class Samples:
    """One completion per prompt, in the prompts' order.

    tokens: ids, the stop id included when one was produced. logps: float32, log p of each of them under the model's
    own distribution (temperature 1, whole vocabulary). truncated: bool (n,), no stop id within the allowed length.
    """

    tokens: list[list[int]]
    logps: list[np.ndarray]
    truncated: np.ndarray


def generate_tokens(
    decoder: "Decoder",
    prompt_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
    dtype: Any = jnp.float32,
) -> Samples:
    """Continues prompts.

    Args:
        decoder: any decoder, with or without adapters.
        prompt_ids: token ids, at least one each.
        max_new_tokens: length at which a row is cut off.
        eos_ids: a row ends with the first of these; may be empty.
        temperature: 0 is greedy.
        top_p: samples from the smallest set of most likely tokens that holds this probability (after temperature).
        seed: sample i is a function of (seed, i, prompt i) up to rounding, whatever the batches.
        batch_size: rows decoded together; prompts are sorted by length first.
        dtype: of the matmul operands and of the cache.

    Raises:
        ValueError: an argument out of range, an empty prompt, or one too long for the model's positions.
    """
    _check(decoder, prompt_ids, max_new_tokens, temperature, top_p, batch_size)
    count = len(prompt_ids)
    tokens: list[list[int]] = [[] for _ in range(count)]
    logps: list[np.ndarray] = [np.zeros(0, np.float32) for _ in range(count)]
    truncated = np.zeros(count, bool)
    stop_K = np.full(_round_up(max(1, len(eos_ids)), 8), -1, np.int32)
    stop_K[: len(eos_ids)] = list(eos_ids)
    order = sorted(range(count), key=lambda i: len(prompt_ids[i]))
    B = min(batch_size, 1 << (count - 1).bit_length()) if count else 0
    for start in range(0, count, max(1, B)):
        rows = order[start : start + B]
        batch = _left_padded([prompt_ids[i] for i in rows], B)
        ids_B = np.asarray(rows + [0] * (B - len(rows)), np.int32)
        out_BN, logp_BN, length_B = _decode(
            decoder,
            *_place(decoder, (*batch, ids_B, np.arange(B) >= len(rows))),
            jax.random.key(seed),
            stop_K,
            np.float32(temperature),
            np.float32(top_p),
            max_new_tokens=max_new_tokens,
            greedy=temperature == 0,
            nucleus=top_p < 1,
            dtype=jnp.dtype(dtype),
        )
        out_BN, logp_BN, length_B = jax.device_get((out_BN, logp_BN, length_B))
        for row, i in enumerate(rows):
            length = int(length_B[row])
            tokens[i], logps[i] = out_BN[row, :length].tolist(), logp_BN[row, :length]
            truncated[i] = tokens[i][-1] not in stop_K
    return Samples(tokens, logps, truncated)


def _check(
    decoder: "Decoder",
    prompt_ids: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    batch_size: int,
) -> None:
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens ({max_new_tokens}) and batch_size ({batch_size}) must be at least 1")
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature ({temperature}) must be >= 0 and top_p ({top_p}) in (0, 1]")
    limit = decoder.config.max_position_embeddings
    for i, ids in enumerate(prompt_ids):
        if len(ids) == 0:
            raise ValueError(f"prompt_ids[{i}] is empty: give at least one token, for example the BOS id")
        if limit and len(ids) + max_new_tokens > limit:
            raise ValueError(
                f"prompt_ids[{i}] has {len(ids)} tokens and {max_new_tokens} more are asked for, "
                f"but the model has {limit} positions: shorten the prompt or max_new_tokens"
            )


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _left_padded(prompts: list[Sequence[int]], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens_BT int32, first_B int32 slots of padding); the rows that are missing are a lone token 0."""
    longest = max(len(ids) for ids in prompts)
    T = _round_up(longest, _SMALL if longest <= _CHUNK else _CHUNK)
    tokens_BT, first_B = np.zeros((rows, T), np.int32), np.full(rows, T - 1, np.int32)
    for row, ids in enumerate(prompts):
        first_B[row] = T - len(ids)
        tokens_BT[row, first_B[row] :] = ids
    return tokens_BT, first_B


def _place(decoder: "Decoder", batch: tuple[np.ndarray, ...]) -> tuple[Any, ...]:
    """Shards the rows over the mesh that the weights live on, if they do."""
    sharding = decoder.embed[...].sharding
    if not isinstance(sharding, jax.sharding.NamedSharding) or not isinstance(sharding.mesh, jax.sharding.Mesh):
        return batch
    from hrsa_jax.runtime.mesh import shard_batch

    return shard_batch(sharding.mesh, batch)


def _operands(decoder: "Decoder", dtype: Any) -> "Decoder":
    """The decoder with its matrices cast once, instead of at every step of the loop."""
    decoder = nnx.clone(decoder)
    for linear in [*stacked_linears(decoder).values(), decoder.head]:
        if linear is not None:
            linear.kernel[...] = linear.kernel[...].astype(dtype)
    return decoder


@functools.partial(jax.jit, static_argnames=("max_new_tokens", "greedy", "nucleus", "dtype"))
def _decode(
    decoder: "Decoder",
    tokens_BT: jax.Array,
    first_B: jax.Array,
    ids_B: jax.Array,
    ended_B: jax.Array,
    key: jax.Array,
    stop_K: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    *,
    max_new_tokens: int,
    greedy: bool,
    nucleus: bool,
    dtype: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """-> (tokens (B, N) int32, log-probabilities (B, N) float32, lengths (B,) int32)."""
    decoder = _operands(decoder, dtype)
    B, T = tokens_BT.shape
    N = max_new_tokens
    keys_B = jax.vmap(lambda row: jax.random.fold_in(key, row))(ids_B)

    def choose(logits_BV: jax.Array, n: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        if greedy:
            token_B = jnp.argmax(logits_BV, axis=-1)
        else:
            scaled_BV = logits_BV / temperature
            if nucleus:
                scaled_BV = keep_top_p(scaled_BV, top_p)
            noise_BV = jax.vmap(lambda k, row: jax.random.gumbel(jax.random.fold_in(k, n), row.shape))(
                keys_B, logits_BV
            )
            token_B = jnp.argmax(scaled_BV + noise_BV, axis=-1)
        chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)[:, 0]
        return token_B.astype(jnp.int32), chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)

    def prefill(carry: Any, chunk: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        tokens_BC, start = chunk
        h_BCD, cache = decoder.extend(tokens_BC, carry[1], jnp.full(B, start), dtype=dtype)
        return (h_BCD[:, -1:], cache), None

    chunk = min(T, _CHUNK)
    empty = decoder.init_cache(B, T + N, dtype, first_B=first_B)
    last_B1D = jnp.zeros((B, 1, decoder.config.hidden_size), jnp.float32)
    pieces = (tokens_BT.reshape(B, T // chunk, chunk).swapaxes(0, 1), jnp.arange(0, T, chunk))
    (last_B1D, cache), _ = jax.lax.scan(prefill, (last_B1D, empty), pieces)
    token_B, logp_B = choose(decoder.logits(last_B1D, dtype=dtype)[:, 0], 0)

    def write(n: Any, token_B: jax.Array, logp_B: jax.Array, state: Any) -> Any:
        out_BN, logps_BN, length_B, ended_B = state
        out_BN = out_BN.at[:, n].set(jnp.where(ended_B, 0, token_B))
        logps_BN = logps_BN.at[:, n].set(jnp.where(ended_B, 0.0, logp_B))
        length_B = length_B + ~ended_B
        return out_BN, logps_BN, length_B, ended_B | jnp.isin(token_B, stop_K)

    def unfinished(carry: Any) -> jax.Array:
        n, _, _, (*_, ended_B) = carry
        return (n < N) & ~jnp.all(ended_B)

    def advance(carry: Any) -> Any:
        n, token_B, cache, state = carry
        h_B1D, cache = decoder.extend(token_B[:, None], cache, jnp.full(B, T + n - 1), dtype=dtype)
        token_B, logp_B = choose(decoder.logits(h_B1D, dtype=dtype)[:, 0], n)
        return n + 1, token_B, cache, write(n, token_B, logp_B, state)

    state = (jnp.zeros((B, N), jnp.int32), jnp.zeros((B, N), jnp.float32), jnp.zeros(B, jnp.int32), ended_B)
    carry = (jnp.int32(1), token_B, cache, write(0, token_B, logp_B, state))
    *_, (out_BN, logps_BN, length_B, _) = jax.lax.while_loop(unfinished, advance, carry)
    return out_BN, logps_BN, length_B


def keep_top_p(logits_BV: jax.Array, top_p: jax.Array | float) -> jax.Array:
    """Sets to -inf all but the smallest set of most likely tokens that holds probability `top_p`.

    The set's least probability is found by bisection over the bit patterns of positive floats (which are ordered as
    the floats are): exact after 31 halvings, and much cheaper than sorting the vocabulary. Ties are kept together.
    """
    probs_BV = jax.nn.softmax(logits_BV.astype(jnp.float32), axis=-1)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_B, high_B = bounds  # mass(>= low) >= top_p > mass(>= high)
        middle_B = low_B + (high_B - low_B) // 2
        threshold_B1 = jax.lax.bitcast_convert_type(middle_B, jnp.float32)[:, None]
        enough_B = jnp.sum(jnp.where(probs_BV >= threshold_B1, probs_BV, 0), axis=-1) >= top_p
        return jnp.where(enough_B, middle_B, low_B), jnp.where(enough_B, high_B, middle_B)

    rows = logits_BV.shape[0]
    above_one = int(np.float32(1.0).view(np.int32)) + 1
    bounds = (jnp.zeros(rows, jnp.int32), jnp.full(rows, above_one, jnp.int32))
    low_B, _ = jax.lax.fori_loop(0, 31, halve, bounds)
    threshold_B1 = jax.lax.bitcast_convert_type(low_B, jnp.float32)[:, None]
    return jnp.where(probs_BV >= threshold_B1, logits_BV, -jnp.inf)
