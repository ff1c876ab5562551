"""Sampling: prompts batched by length, rows refilled as they finish, two compiled programs per call.

Decoding is one `lax.while_loop` that returns to the host only when rows can be refilled or stop strings looked for.
Each prompt has its own random stream, so that a sample depends neither on its batch nor on the order of refills. Equal
prompts (the groups of GRPO) are run once.

B rows, U different prompts, R rows refilled together, T prompt tokens, N new tokens, V vocabulary, K stop ids.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hrsa_jax.models.cache import Cache, Prepared, decode_step, empty_cache, insert, place, prefill, prepare
from hrsa_jax.models.choose import choose
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.mesh import to_host

if TYPE_CHECKING:
    from hrsa_jax.models.decoder import Decoder

_LOOK_EVERY = 8  # tokens between two looks for stop strings


@dataclass(frozen=True)
class Samples:
    """One completion per prompt, in the prompts' order.

    tokens: ids, including the stop id (or the token that completed a stop string) when there was one. logps:
    float32, log p of each of them under the model's own distribution (temperature 1, whole vocabulary).
    truncated: bool (n,), neither stop id nor stop string within the allowed length.
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
    stop_strings: Sequence[str] = (),
    tokenizer: Any = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
    dtype: Any = jnp.float32,
) -> Samples:
    """Continues prompts.

    Args:
        decoder: any decoder, with or without adapters.
        prompt_ids: token ids, at least one each, without padding (`unpadded` takes it off on either side).
        max_new_tokens: length at which a row is cut off.
        eos_ids: a row ends with the first of these; may be empty.
        stop_strings: a row also ends with the token that completes one of these; needs the tokenizer.
        temperature: 0 is greedy.
        top_p: samples from the smallest set of most likely tokens that holds this probability (after temperature).
        seed: sample i is a function of (seed, i, prompt i) up to rounding, whatever the batches.
        batch_size: rows decoded together.
        dtype: of the matmul operands and of the cache (on a CPU the cache is always float32).

    Raises:
        ValueError: an argument out of range, an empty prompt, or one too long for the model's positions.
    """
    _check(decoder, prompt_ids, max_new_tokens, temperature, top_p, batch_size)
    if stop_strings and (tokenizer is None or "" in stop_strings):
        raise ValueError(f"stop_strings {list(stop_strings)} need a tokenizer, and none of them may be empty")
    count = len(prompt_ids)
    samples = Samples([[] for _ in range(count)], [np.zeros(0, np.float32)] * count, np.zeros(count, bool))
    if not count:
        return samples
    stop_K = np.full(-(-max(1, len(eos_ids)) // 8) * 8, -1, np.int32)
    stop_K[: len(eos_ids)] = list(eos_ids)
    batch = _Batch(
        decoder,
        rows=min(batch_size, 1 << (count - 1).bit_length()),
        new=max_new_tokens,
        settings=_Settings(jax.random.key(seed), stop_K, np.float32(temperature), np.float32(top_p)),
        static={"greedy": temperature == 0, "nucleus": top_p < 1, "dtype": jnp.dtype(dtype)},
        stop_at=functools.partial(_stop_at, tokenizer, stop_strings) if stop_strings else None,
    )
    for length, chosen in _by_length(prompt_ids, batch.rows):
        batch.run(prompt_ids, chosen, length, samples)
    return samples


def unpadded(tokens_BT: np.ndarray, mask_BT: np.ndarray) -> list[list[int]]:
    """The prompts of a padded batch (mask False: padding, on the left or on the right)."""
    return [row[mask].tolist() for row, mask in zip(np.asarray(tokens_BT), np.asarray(mask_BT, bool), strict=True)]


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
    if decoder.head is None and not decoder.config.has_head:
        raise InputError("this checkpoint has no language-model head (lm_head.weight), so it generates nothing")
    limit = decoder.config.max_position_embeddings
    for i, ids in enumerate(prompt_ids):
        if len(ids) == 0:
            raise ValueError(f"prompt_ids[{i}] is empty: give at least one token, for example the BOS id")
        if limit and len(ids) + max_new_tokens > limit:
            raise ValueError(
                f"prompt_ids[{i}] has {len(ids)} tokens and {max_new_tokens} more are asked for, "
                f"but the model has {limit} positions: shorten the prompt or max_new_tokens"
            )


def _by_length(prompt_ids: Sequence[Sequence[int]], rows: int) -> Iterator[tuple[int, list[int]]]:
    """Groups of prompts by padded length, shortest first; what would not fill the rows goes on to the next length."""
    by_length: dict[int, list[int]] = {}
    for i in sorted(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i])):
        by_length.setdefault(_padded_length(len(prompt_ids[i])), []).append(i)
    waiting: list[int] = []
    for length, found in by_length.items():
        waiting += found
        if len(waiting) >= rows or length == max(by_length):
            yield length, waiting
            waiting = []


def _padded_length(length: int) -> int:
    """The next multiple of 16, of 32 beyond 128, of 64 beyond 256, ...: few shapes, at most an eighth of padding."""
    step = max(16, 1 << max(0, (length - 1).bit_length() - 3))
    return -(-length // step) * step


def _stop_at(tokenizer: Any, stop_strings: Sequence[str], tokens: list[int]) -> int | None:
    """How many tokens it takes to complete the first stop string, None when there is none."""

    def complete(n: int) -> bool:
        text = tokenizer.decode(tokens[:n], skip_special_tokens=False)
        return any(string in text for string in stop_strings)

    if not complete(len(tokens)):
        return None
    low, high = 0, len(tokens)  # a text that holds the string still holds it when it grows
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if complete(middle) else (middle, high)
    return high


class _Settings(NamedTuple):
    """What the compiled programs are given besides the rows."""

    key: jax.Array
    stop_K: np.ndarray
    temperature: Any
    top_p: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Rows:
    """State of B rows: their cache, the token each runs next, how many it has made, its prompt's number, its output."""

    cache: Cache
    token_B: jax.Array
    made_B: jax.Array
    ended_B: jax.Array
    id_B: jax.Array
    out_BN: jax.Array
    logp_BN: jax.Array


class _Batch:
    """B rows that prompts are put into as others finish."""

    def __init__(
        self,
        decoder: "Decoder",
        *,
        rows: int,
        new: int,
        settings: _Settings,
        static: dict[str, Any],
        stop_at: Callable[[list[int]], int | None] | None,
    ):
        self.decoder, self.rows, self.new, self.settings, self.static = decoder, rows, new, settings, static
        self.stop_at = stop_at
        self.prepared = prepare(decoder, dtype=static["dtype"])
        self.refill = max(1, rows // 4)  # rows that change hands together

    def run(self, prompt_ids: Sequence[Sequence[int]], chosen: list[int], length: int, samples: Samples) -> None:
        """Completes the chosen prompts, none longer than `length`, and writes them into `samples`."""
        state = self._empty(length + self.new)
        free, busy, waiting = list(range(self.rows)), dict[int, int](), list(chosen)  # busy: row -> prompt
        while waiting or busy:
            while waiting and free:
                new, waiting = waiting[: min(self.refill, len(free))], waiting[min(self.refill, len(free)) :]
                taken, free = free[: len(new)], free[len(new) :]
                busy.update(zip(taken, new, strict=True))
                state = self._admit(state, prompt_ids, new, taken, length)
            state = _advance(
                self.prepared,
                state,
                self.settings,
                np.int32(self.new if self.stop_at is None else _LOOK_EVERY),
                np.int32(self.rows - len(busy) + (self.refill if waiting else self.rows)),
                **self.static,
            )
            state = self._collect(state, busy, free, samples)

    def _empty(self, slots: int) -> _Rows:
        B, N = self.rows, self.new
        numbers = (np.zeros(B, np.int32), np.zeros(B, np.int32), np.ones(B, bool), np.zeros(B, np.int32))
        small = place(self.decoder, (*numbers, np.zeros((B, N), np.int32), np.zeros((B, N), np.float32)))
        return _Rows(empty_cache(self.decoder, B, slots, self.static["dtype"]), *small)

    def _admit(
        self, state: _Rows, prompt_ids: Sequence[Sequence[int]], new: list[int], rows: list[int], length: int
    ) -> _Rows:
        """Prefills the prompts `new` and puts them into `rows`; equal prompts are run once."""
        different: dict[tuple[int, ...], int] = {}
        source = [different.setdefault(tuple(prompt_ids[i]), len(different)) for i in new]
        U = min(self.refill, 1 << (len(different) - 1).bit_length())
        tokens_UT, length_U = np.zeros((U, length), np.int32), np.ones(U, np.int32)
        for row, ids in enumerate(different):
            tokens_UT[row, : len(ids)], length_U[row] = ids, len(ids)
        left_out = self.refill - len(new)
        row_R = np.asarray(rows + [self.rows] * left_out, np.int32)
        source_R, id_R = (np.asarray(values + [0] * left_out, np.int32) for values in (source, new))
        return _enter(
            self.decoder,
            self.prepared,
            state,
            (tokens_UT, length_U),
            (row_R, source_R, id_R),
            self.settings,
            **self.static,
        )

    def _collect(self, state: _Rows, busy: dict[int, int], free: list[int], samples: Samples) -> _Rows:
        """Takes finished rows out; rows that a stop string has ended are marked as ended."""
        made_B, ended_B = (to_host(values).copy() for values in (state.made_B, state.ended_B))
        if self.stop_at is None and not ended_B[list(busy)].any():
            return state
        out_BN, logp_BN = to_host(state.out_BN), to_host(state.logp_BN)
        stopped = False
        for row, i in list(busy.items()):
            tokens, cut = out_BN[row, : made_B[row]].tolist(), None
            if self.stop_at is not None:
                cut = self.stop_at(tokens)
            if not ended_B[row] and cut is None:
                continue
            tokens = tokens if cut is None else tokens[:cut]
            samples.tokens[i], samples.logps[i] = tokens, logp_BN[row, : len(tokens)].copy()
            samples.truncated[i] = cut is None and tokens[-1] not in self.settings.stop_K
            stopped |= not ended_B[row]
            ended_B[row] = True
            free.append(row)
            del busy[row]
        if not stopped:
            return state
        (marked_B,) = place(self.decoder, (ended_B,))
        return replace(state, ended_B=marked_B)


_STATIC = ("greedy", "nucleus", "dtype")


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnames="state")
def _enter(
    decoder: "Decoder",
    prepared: Prepared,
    state: _Rows,
    prompts: tuple[jax.Array, jax.Array],
    places: tuple[jax.Array, jax.Array, jax.Array],
    settings: _Settings,
    *,
    greedy: bool,
    nucleus: bool,
    dtype: Any,
) -> _Rows:
    """Prompts (tokens (U, T), lengths (U,)) into (rows, prompts, numbers), (R,) each; their first tokens are chosen."""
    (tokens_UT, length_U), (row_R, source_R, id_R) = prompts, places
    last_UD, k_LUTKH, v_LUTKH = prefill(decoder, tokens_UT, length_U, dtype)
    cache = insert(state.cache, (k_LUTKH, v_LUTKH), length_U[source_R], source_R, row_R)
    logits_RV = prepared.logits(last_UD, dtype)[source_R]
    token_R, logp_R = choose(
        logits_RV,
        _keys(settings.key, id_R, jnp.zeros_like(id_R)),
        temperature=settings.temperature,
        top_p=settings.top_p,
        greedy=greedy,
        nucleus=nucleus,
    )

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[row_R].set(new, mode="drop")

    N = state.out_BN.shape[1]
    return _Rows(
        cache,
        put(state.token_B, token_R),
        put(state.made_B, jnp.ones_like(id_R)),
        put(state.ended_B, jnp.isin(token_R, settings.stop_K) | (N == 1)),
        put(state.id_B, id_R),
        state.out_BN.at[row_R, 0].set(token_R, mode="drop"),
        state.logp_BN.at[row_R, 0].set(logp_R, mode="drop"),
    )


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnames="state")
def _advance(
    prepared: Prepared,
    state: _Rows,
    settings: _Settings,
    limit: jax.Array,
    wait: jax.Array,
    *,
    greedy: bool,
    nucleus: bool,
    dtype: Any,
) -> _Rows:
    """Decodes until `limit` tokens a row are made, `wait` rows have ended, or all have."""
    rows, N = jnp.arange(state.token_B.shape[0]), state.out_BN.shape[1]

    def unfinished(carry: tuple[jax.Array, _Rows]) -> jax.Array:
        ended = carry[1].ended_B.sum()
        return (carry[0] < limit) & (ended < wait) & (ended < rows.size)

    def step(carry: tuple[jax.Array, _Rows]) -> tuple[jax.Array, _Rows]:
        n, state = carry
        h_BD, cache = decode_step(prepared, state.token_B, state.cache, ~state.ended_B, dtype)
        token_B, logp_B = choose(
            prepared.logits(h_BD, dtype),
            _keys(settings.key, state.id_B, state.made_B),
            temperature=settings.temperature,
            top_p=settings.top_p,
            greedy=greedy,
            nucleus=nucleus,
        )
        at_B = jnp.where(state.ended_B, N, state.made_B)  # a row that has ended writes nowhere
        made_B = jnp.where(state.ended_B, state.made_B, state.made_B + 1)
        return n + 1, _Rows(
            cache,
            token_B,
            made_B,
            state.ended_B | jnp.isin(token_B, settings.stop_K) | (made_B >= N),
            state.id_B,
            state.out_BN.at[rows, at_B].set(token_B, mode="drop"),
            state.logp_BN.at[rows, at_B].set(logp_B, mode="drop"),
        )

    return jax.lax.while_loop(unfinished, step, (jnp.int32(0), state))[1]


def _keys(key: jax.Array, id_B: jax.Array, made_B: jax.Array) -> jax.Array:
    """One random key per row: a function of its prompt's number and of how many tokens it has made."""
    return jax.vmap(lambda i, n: jax.random.fold_in(jax.random.fold_in(key, i), n))(id_B, made_B)
