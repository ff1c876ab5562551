"""From models to arrays: the one file of hrsa/ that runs models.

Token states feed the token-level measures, pooled states the probes. Activations of any other model (an encoder, a
vision model) come from `.npy` or safetensors files. L layers, N tokens of all texts together, n texts, D width.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hrsa_jax.embedding.encoder import Encoder
from hrsa_jax.hrsa.activation_files import SUFFIXES, load_states, save_states, stored_states
from hrsa_jax.hrsa.analysis import Preset, compare
from hrsa_jax.hrsa.cka_batches import Pairs, cka_of_batches
from hrsa_jax.hrsa.results import Comparison
from hrsa_jax.hrsa.states import TokenStates, shared_row_mask
from hrsa_jax.models.backbone import Backbone, load
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import counted
from hrsa_jax.runtime.mesh import to_host

Attention = Literal["causal", "bidirectional"]
Dtype = Literal["float32", "bfloat16"]
Runnable = Backbone | Encoder
Model = str | Path | Runnable | TokenStates
TOKENS_PER_BATCH = 4096
ROW_MULTIPLE = 16  # row lengths are padded to it, so that few shapes are compiled
PROBE_TEXTS = 100  # with fewer labelled texts left over, the probes share texts with the token measures

__all__ = [
    "TokenStates",
    "check_same_tokens",
    "compare_models",
    "load_states",
    "save_states",
    "stream_cka",
    "text_states",
    "token_batches",
    "token_states",
    "token_texts",
]


class TokenBatch(NamedTuple):
    """Hidden states of a few texts: states (L+1, N_b, D) of their tokens, and per row the text, token id, position."""

    states_LND: np.ndarray
    groups_N: np.ndarray
    token_ids_N: np.ndarray
    positions_N: np.ndarray


def token_batches(
    model: Runnable,
    texts: Sequence[str],
    *,
    max_tokens: int = 64,
    attention: Attention | None = None,
    dtype: Dtype = "float32",
    batch_tokens: int = TOKENS_PER_BATCH,
    extra_padding: int = 0,
) -> Iterator[TokenBatch]:
    """Hidden states of all tokens, a batch of texts at a time: nothing else is kept.

    Texts run sorted by length, `batch_tokens` token slots a batch, so two models with equal tokens give equal
    batches. dtype: of the computation; states are float32. extra_padding: more empty slots a row, to see that padding
    does not matter. Raises InputError for no texts, texts without tokens, or
    states that are not finite.
    """
    backbone = model.backbone if isinstance(model, Encoder) else model
    mode = attention or model.attention
    ids_BT, mask_BT = backbone.tokenize(texts, max_length=max_tokens)
    lengths = mask_BT.sum(1)
    if not lengths.all():
        raise InputError(f"Text {int(lengths.argmin())} has no tokens; drop it.")
    batch = max(1, batch_tokens // ids_BT.shape[1])
    order = np.argsort(-lengths, kind="stable")
    for first in range(0, len(order), batch):
        chosen = order[first : first + batch]
        width = -(-(int(lengths[chosen].max()) + extra_padding) // ROW_MULTIPLE) * ROW_MULTIPLE
        spare = min(batch, len(order)) - len(chosen)  # rows of padding keep one compiled shape
        fill = ((0, spare), (0, max(0, width - ids_BT.shape[1])))
        ids, mask = (np.pad(rows[chosen, :width], fill) for rows in (ids_BT, mask_BT))
        places = np.broadcast_to(np.arange(width, dtype=np.int32), ids.shape)
        tokens, segments = np.where(mask, ids, 0).astype(np.int32), mask.astype(np.int32)
        hidden = to_host(_states(backbone.decoder, tokens, segments, places, attention=mode, dtype=dtype))
        texts_of_rows = np.broadcast_to(np.append(chosen, np.zeros(spare, int))[:, None], ids.shape)
        states = hidden[:, mask]
        if not np.isfinite(states).all():
            raise InputError(f"{backbone.source} gives NaN or infinite hidden states; check its weights.")
        rows = (texts_of_rows, ids, places)
        yield TokenBatch(states, *(values[mask].astype(np.int32) for values in rows))


@jax.jit(static_argnames=("attention", "dtype"))
def _states(decoder: Any, tokens_BT: Any, segments_BT: Any, positions_BT: Any, *, attention: str, dtype: str) -> Any:
    def collect(h_BTD: jax.Array) -> jax.Array:
        return h_BTD.astype(jnp.float32)

    return decoder(
        tokens_BT, segments_BT, positions_BT, attention=attention, collect=collect, dtype=jnp.dtype(dtype)
    ).collected


def token_states(
    model: Runnable,
    texts: Sequence[str],
    *,
    max_tokens: int = 64,
    attention: Attention | None = None,
    dtype: Dtype = "float32",
    batch_tokens: int | None = None,
    extra_padding: int = 0,
    store: str | Path | None = None,
) -> TokenStates:
    """Hidden states of every token of the texts, at most `max_tokens` each: states (L+1, N, D) float32.

    attention None is the model's own mode. Rows are in text order. Other settings: as in `token_batches`.
    store: a folder that keeps the states; the same model, texts and settings are then never run twice.
    Raises InputError for no texts, texts without tokens, or activations that are not finite.
    """
    size = TOKENS_PER_BATCH if batch_tokens is None else batch_tokens
    options: dict[str, Any] = {"max_tokens": max_tokens, "dtype": dtype, "attention": attention or model.attention}

    def compute() -> TokenStates:
        batches = list(token_batches(model, texts, batch_tokens=size, extra_padding=extra_padding, **options))
        groups, ids, positions = (np.concatenate([getattr(b, f) for b in batches]) for f in TokenBatch._fields[1:])
        order = np.lexsort((positions, groups))
        states = np.empty((len(batches[0].states_LND), len(order), batches[0].states_LND.shape[2]), np.float32)
        place = np.empty(len(order), int)
        place[order] = np.arange(len(order))
        start = 0
        while batches:  # each batch is let go when it has been copied
            batch = batches.pop(0)
            states[:, place[start : start + len(batch.groups_N)]] = batch.states_LND
            start += len(batch.groups_N)
        return TokenStates(states, groups[order], ids[order], positions[order])

    if store is None:
        return compute()
    return stored_states(
        store, {"model": model.fingerprint, "texts": list(texts), "rows": "tokens", **options}, compute
    )


def stream_cka(
    a: Runnable,
    b: Runnable,
    texts: Sequence[str],
    *,
    max_tokens: int = 512,
    debiased: bool = True,
    pairs: Pairs = "all",
    attention: Attention | None = None,
) -> np.ndarray:
    """Linear CKA of all layer pairs (L, M) over any number of tokens, both models running side by side.

    No activations are kept past the point where sums cost less (see `cka_batches`). The sinks of each batch, as
    `sink_rows` finds them there, are left out in both models alike. Raises InputError when token ids differ.
    """
    differs = check_same_tokens(a, b, texts, max_tokens=max_tokens)
    if differs is not None:
        raise InputError(f"The models give text {differs} different token ids; compare pooled texts instead.")

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        sides = (token_batches(model, texts, max_tokens=max_tokens, attention=attention) for model in (a, b))
        for left, right in zip(*sides, strict=True):
            keep = shared_row_mask(TokenStates(*left), TokenStates(*right))
            if keep.any():
                yield left.states_LND[:, keep], right.states_LND[:, keep]

    return np.asarray(cka_of_batches(batches(), debiased=debiased, pairs=pairs))


def text_states(
    model: Runnable, texts: Sequence[str], *, prompt: str | None = None, attention: Attention | None = None
) -> np.ndarray:
    """Pooled hidden states of every layer, float32 (L+1, n, D): an Encoder's own pooling, a Backbone's mean."""
    if isinstance(model, Encoder) and attention in (None, model.attention):
        return model.hidden(texts, prompt)
    backbone = model.backbone if isinstance(model, Encoder) else model
    pooling = model.pooling if isinstance(model, Encoder) else None
    return Encoder(backbone, attention=attention, pooling=pooling).hidden(texts, prompt)


def check_same_tokens(a: Runnable, b: Runnable, texts: Sequence[str], *, max_tokens: int | None = None) -> int | None:
    """The first text whose token IDS differ between the two models; None when all are the same.

    Ids are compared and not their number: two tokenizers may cut a text into equally many different pieces.
    """
    sides = [(m.backbone if isinstance(m, Encoder) else m).tokenize(texts, max_length=max_tokens) for m in (a, b)]
    for text in range(len(texts)):
        first, second = (ids[text][mask[text]] for ids, mask in sides)
        if not np.array_equal(first, second):
            return text
    return None


def token_texts(count: int, max_texts: int, seed: int) -> list[int]:
    """Which of `count` texts give the tokens: `max_texts` drawn at random, in order (files are often sorted)."""
    return sorted(int(i) for i in np.random.default_rng(seed).permutation(count)[:max_texts])


def compare_models(
    a: Model,
    b: Model,
    texts: Sequence[str] = (),
    labels: Sequence[Any] | None = None,
    preset: Preset = "careful",
    *,
    max_texts: int = 64,
    max_tokens: int = 64,
    attention: Attention | None = None,
    seed: int = 0,
    row_mask: np.ndarray | None = None,
    store: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Compare two models on texts (`hrsa_jax.compare`).

    Args:
      a, b: model sources, Backbones, Encoders; or activations: TokenStates, or .npy / .safetensors files.
      texts: `max_texts` of them, drawn at random by `seed`, give the tokens (at most `max_tokens` each).
      labels: one class per text, for the probes. Texts that give no tokens feed the probes; all of them if
        fewer than 100 would remain.
      preset: "careful" runs each model in its native attention mode; "paper" runs both in a's.
      attention: run both models in this mode instead.
      store: a folder for token states, as in `token_states`.
      row_mask, seed, progress: as in `analysis.compare`.

    Models whose tokenizers differ on these texts are compared by pooled texts. Raises InputError on bad input.

    Examples:
      >>> texts = [f"text number {number}, about nothing" for number in range(12)]
      >>> found = compare_models("base", "reasoning", texts, max_tokens=8)
      >>> bool((found.measures["cka"].value <= 1.001).all())  # one value a layer
      True
      >>> found.measures["cka"].interval95.shape == (len(found.measures["cka"].layers), 2)
      True
    """
    left, right = sides = _resolve(a), _resolve(b)
    if any(isinstance(side, TokenStates) for side in sides):
        if not all(isinstance(side, TokenStates) for side in sides):
            raise InputError("One side is stored activations and the other a model; give activations for both.")
        stored = compare(left, right, preset=preset, seed=seed, row_mask=row_mask, progress=progress)
        stored.facts["models"] = {"a": _name(a), "b": _name(b)}
        return stored
    if len(texts) < 8 or isinstance(texts, str):
        raise InputError(f"{counted(len(texts), 'text')} given; intervals over texts need a list of at least 8.")
    if labels is not None and len(labels) != len(texts):
        raise InputError(
            f"There are {counted(len(labels), 'label')} for {counted(len(texts), 'text')}; give one label per text."
        )
    report = progress or (lambda stage: None)
    mode = attention or (left.attention if preset == "paper" else None)
    for_tokens = token_texts(len(texts), max_texts, seed)
    rest = sorted(set(range(len(texts))) - set(for_tokens))
    chosen = [texts[i] for i in for_tokens]
    differs = check_same_tokens(left, right, chosen, max_tokens=max_tokens)
    pooled_rows = list(range(len(texts))) if differs is not None or len(rest) < PROBE_TEXTS else rest
    report("activations")
    tokens: list[Any] = [None, None]
    if differs is None:
        tokens = [token_states(side, chosen, max_tokens=max_tokens, attention=mode, store=store) for side in sides]
    pooled: list[Any] = [None, None]
    if differs is not None or labels is not None:
        pooled = [text_states(side, [texts[i] for i in pooled_rows], attention=mode) for side in sides]
    comparison = compare(
        tokens[0],
        tokens[1],
        texts_a=pooled[0],
        texts_b=pooled[1],
        labels=None if labels is None else [labels[i] for i in pooled_rows],
        preset=preset,
        seed=seed,
        row_mask=row_mask,
        progress=progress,
    )
    if differs is not None:
        comparison.notes.append(
            f"the tokenizers differ, first in text {for_tokens[differs]}: pooled texts were compared"
        )
    comparison.facts["models"] = {"a": _name(a), "b": _name(b)}
    comparison.facts["attention"] = {"a": mode or left.attention, "b": mode or right.attention}
    comparison.facts["fingerprints"] = {"a": left.fingerprint, "b": right.fingerprint}
    return comparison


def _name(model: Model) -> str:
    """What the model is called in tables and figures: its source; empty for states that have none."""
    if isinstance(model, Encoder):
        model = model.backbone
    return str(model.source if isinstance(model, Backbone) else "" if isinstance(model, TokenStates) else model)


def _resolve(model: Model) -> Any:
    """A Backbone, an Encoder, or stored activations."""
    if isinstance(model, str | Path):
        return load_states(model) if Path(model).suffix in SUFFIXES else load(model)
    return model
