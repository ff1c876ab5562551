"""From models to arrays: the one file of hrsa/ that runs models.

Token states feed the token-level measures, pooled states the probes. Activations of any other model (an encoder, a
vision model) come from `.npy` or safetensors files. L layers, N tokens of all texts together, n texts, D width.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hrsa_jax.embedding.encoder import Encoder
from hrsa_jax.hrsa.analysis import Preset, compare
from hrsa_jax.hrsa.results import Comparison
from hrsa_jax.hrsa.states import TokenStates
from hrsa_jax.models.backbone import Backbone, load
from hrsa_jax.runtime.errors import InputError

Attention = Literal["causal", "bidirectional"]
Model = str | Path | Backbone | Encoder | TokenStates
TOKENS_PER_BATCH = 4096
PROBE_TEXTS = 100  # with fewer labelled texts left over, the probes share texts with the token measures

__all__ = [
    "TokenStates",
    "check_same_tokens",
    "compare_models",
    "load_states",
    "save_states",
    "text_states",
    "token_states",
]


def token_states(
    model: Backbone | Encoder, texts: Sequence[str], *, max_tokens: int = 64, attention: Attention | None = None
) -> TokenStates:
    """Hidden states of every token of the texts, at most `max_tokens` each: states (L+1, N, D) float32.

    attention None is the model's own mode. Rows are in text order; texts run in batches of equal shape, sorted
    by length. Raises InputError for no texts, texts without tokens, or activations that are not finite.
    """
    backbone = model.backbone if isinstance(model, Encoder) else model
    mode = attention or model.attention
    ids_BT, mask_BT = backbone.tokenize(texts, max_length=max_tokens)
    lengths = mask_BT.sum(1)
    if not lengths.all():
        raise InputError(f"Text {int(lengths.argmin())} has no tokens; drop it.")
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    config = backbone.config
    states = np.empty((config.num_layers + 1, int(lengths.sum()), config.hidden_size), np.float32)
    batch = max(1, TOKENS_PER_BATCH // ids_BT.shape[1])
    order = np.argsort(-lengths, kind="stable")
    for first in range(0, len(order), batch):
        chosen = order[first : first + batch]
        longest = int(lengths[chosen].max())
        fill = ((0, min(batch, len(order)) - len(chosen)), (0, 0))  # rows of padding keep one compiled shape
        ids, mask = (np.pad(rows[chosen, :longest], fill) for rows in (ids_BT, mask_BT))
        hidden = backbone.hidden_states(ids, mask, attention=mode)
        if not np.isfinite(hidden[:, : len(chosen)]).all():
            raise InputError(f"{backbone.source} gives NaN or infinite hidden states; check its weights.")
        for place, text in enumerate(chosen):
            length = lengths[text]
            states[:, starts[text] : starts[text] + length] = hidden[:, place, :length]
    return TokenStates(
        states,
        np.repeat(np.arange(len(lengths)), lengths).astype(np.int32),
        ids_BT[mask_BT].astype(np.int32),
        np.broadcast_to(np.arange(ids_BT.shape[1]), ids_BT.shape)[mask_BT].astype(np.int32),
    )


def text_states(
    model: Backbone | Encoder, texts: Sequence[str], *, prompt: str | None = None, attention: Attention | None = None
) -> np.ndarray:
    """Pooled hidden states of every layer, float32 (L+1, n, D): an Encoder's own pooling, a Backbone's mean."""
    if isinstance(model, Encoder) and attention in (None, model.attention):
        return model.hidden(texts, prompt)
    backbone = model.backbone if isinstance(model, Encoder) else model
    pooling = model.pooling if isinstance(model, Encoder) else None
    return Encoder(backbone, attention=attention, pooling=pooling).hidden(texts, prompt)


def check_same_tokens(
    a: Backbone | Encoder, b: Backbone | Encoder, texts: Sequence[str], *, max_tokens: int | None = None
) -> int | None:
    """The first text whose token IDS differ between the two models; None when all are the same.

    Ids are compared and not their number: two tokenizers may cut a text into equally many different pieces.
    """
    sides = [(m.backbone if isinstance(m, Encoder) else m).tokenize(texts, max_length=max_tokens) for m in (a, b)]
    for text in range(len(texts)):
        first, second = (ids[text][mask[text]] for ids, mask in sides)
        if not np.array_equal(first, second):
            return text
    return None


def save_states(states: TokenStates, path: str | Path) -> None:
    """Write activations as safetensors: tensors states, groups, and token_ids and positions where there are any."""
    from safetensors.numpy import save_file

    tensors = {
        "states": states.states_LND,
        "groups": states.groups_N,
        "token_ids": states.token_ids_N,
        "positions": states.positions_N,
    }
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items() if value is not None}, path)


def load_states(path: str | Path) -> TokenStates:
    """Activations of any model: safetensors as `save_states` writes (`states` suffices), or .npy (L, N, D).

    Without groups every row is a text of its own. Raises InputError naming the file.
    """
    file = Path(path)
    if not file.exists():
        raise InputError(f"{file} does not exist; give a .npy or .safetensors file of activations.")
    try:
        if file.suffix == ".npy":
            tensors = {"states": np.load(file, allow_pickle=False)}
        else:
            from safetensors.numpy import load_file

            tensors = load_file(file)
        states = np.asarray(tensors["states"], np.float32)
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
      row_mask, seed, progress: as in `analysis.compare`.

    Models whose tokenizers differ on these texts are compared by pooled texts. Raises InputError on bad input.
    """
    left, right = sides = _resolve(a), _resolve(b)
    if any(isinstance(side, TokenStates) for side in sides):
        if not all(isinstance(side, TokenStates) for side in sides):
            raise InputError("One side is stored activations and the other a model; give activations for both.")
        return compare(left, right, preset=preset, seed=seed, row_mask=row_mask, progress=progress)
    if len(texts) < 8 or isinstance(texts, str):
        raise InputError(f"{len(texts)} texts were given; intervals over texts need a list of at least 8.")
    if labels is not None and len(labels) != len(texts):
        raise InputError(f"There are {len(labels)} labels for {len(texts)} texts; give one label per text.")
    report = progress or (lambda stage: None)
    mode = attention or (left.attention if preset == "paper" else None)
    order = np.random.default_rng(seed).permutation(len(texts))
    for_tokens, rest = sorted(order[:max_texts]), sorted(order[max_texts:])
    chosen = [texts[i] for i in for_tokens]
    differs = check_same_tokens(left, right, chosen, max_tokens=max_tokens)
    pooled_rows = list(range(len(texts))) if differs is not None or len(rest) < PROBE_TEXTS else rest
    report("activations")
    tokens: list[Any] = [None, None]
    if differs is None:
        tokens = [token_states(side, chosen, max_tokens=max_tokens, attention=mode) for side in sides]
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
    comparison.facts["attention"] = {"a": mode or left.attention, "b": mode or right.attention}
    comparison.facts["fingerprints"] = {"a": left.fingerprint, "b": right.fingerprint}
    return comparison


def _resolve(model: Model) -> Any:
    """A Backbone, an Encoder, or stored activations."""
    if isinstance(model, str | Path):
        return load_states(model) if Path(model).suffix in (".npy", ".safetensors") else load(model)
    return model
