"""Hidden states of one model over a set of tokens, and which of their rows a comparison uses.

L layers (h_0 embeddings .. h_L after the final norm), N rows (tokens, or one pooled vector per text), D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from hrsa_jax.hrsa.inputs import unit_rms
from hrsa_jax.runtime.errors import InputError

SINK_FACTOR = 10.0  # norm, against the layer's median
SINK_DISTANCE = 2.5  # distance from the mean of the rows that are kept, against their median


@dataclass(frozen=True)
class TokenStates:
    """states_LND float32; groups_N int32 the text of each row; token_ids_N and positions_N, int32.

    Rows of pooled texts, or of a model that is not a language model, have neither ids nor positions (None).
    """

    states_LND: np.ndarray
    groups_N: np.ndarray
    token_ids_N: np.ndarray | None = None
    positions_N: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.states_LND.ndim != 3:
            raise ValueError(f"states_LND has shape {self.states_LND.shape}; it must be (layers, rows, width)")
        for name in ("groups_N", "token_ids_N", "positions_N"):
            value = getattr(self, name)
            if value is not None and np.shape(value) != (self.states_LND.shape[1],):
                raise ValueError(f"{name} has shape {np.shape(value)} for {self.states_LND.shape[1]} rows")
        if not all(np.isfinite(layer).all() for layer in self.states_LND):
            raise ValueError("states_LND contains NaN or inf")

    @property
    def num_layers(self) -> int:
        """How many states: L + 1 for a model of L blocks."""
        return self.states_LND.shape[0]

    @property
    def width(self) -> int:
        return self.states_LND.shape[2]


def sink_rows(states: TokenStates) -> np.ndarray:
    """Rows (N,) bool that a massive activation dominates; a row counts if any layer says so: all layers share rows.

    Three signs: position 0; a norm above 10 x its layer's median; a distance above 2.5 x the median distance, both of
    the rows that are kept (taken out and measured again until nothing more falls out: a fifth of all rows may be sinks,
    and their own mean would hide them). The third is needed because similarities are of centred rows, and where rows
    share a long mean, a row may have an ordinary norm and lie far off. Ordinary rows of SmolLM2-135M end at 1.9 x the
    median distance. Measured on two seeds of one conversion of it to bidirectional attention, 15% to 19% of rows of
    each, CKA over the layers: 0.83 (least 0.34) where 4 x is taken out once, 0.94 (0.68) until nothing falls out, 0.98
    (0.90) with 2.5 x, 0.99 (0.95) with 2 x; the backbones' stays at 0.98 throughout.
    """
    always = np.zeros(states.states_LND.shape[1], bool)
    if states.positions_N is not None:
        always |= states.positions_N == 0
    sinks = always.copy()
    for layer in states.states_LND:
        norm = np.sqrt(np.einsum("nd,nd->n", layer, layer, dtype=np.float64))
        here = always | (norm > SINK_FACTOR * np.median(norm))
        if here.all():
            return here
        sinks |= _far_rows(layer, here)
    return sinks


def _far_rows(layer_ND: np.ndarray, out_N: np.ndarray) -> np.ndarray:
    """`out_N` and every row far from the rest, where "the rest" is what is left at the end: (N,) bool."""
    while True:
        away = layer_ND - layer_ND[~out_N].mean(0)
        distance = np.sqrt(np.einsum("nd,nd->n", away, away, dtype=np.float64))
        grown = out_N | (distance > SINK_DISTANCE * np.median(distance[~out_N]))
        if (grown == out_N).all():  # it only grows, and half of what is kept is never taken out
            return out_N
        out_N = grown


def shared_row_mask(*states: TokenStates) -> np.ndarray:
    """Rows (N,) bool to keep: those that are a sink in none of the models. One mask serves a whole comparison.

    Pass all four models of a study to compare the Emb pair and the backbone pair on the same rows.
    """
    if len({s.states_LND.shape[1] for s in states}) != 1:
        raise ValueError(f"states have {[s.states_LND.shape[1] for s in states]} rows; all must hold the same rows")
    return ~np.logical_or.reduce([sink_rows(s) for s in states])


def check_same_rows(a: TokenStates, b: TokenStates) -> None:
    """InputError unless both models saw the same tokens of the same texts: ids are compared, not their count."""
    if a.states_LND.shape[1] != b.states_LND.shape[1]:
        counts = [np.unique(s.groups_N, return_counts=True) for s in (a, b)]
        shorter = min(len(counts[0][1]), len(counts[1][1]))
        differs = np.flatnonzero(counts[0][1][:shorter] != counts[1][1][:shorter])
        text = int(counts[0][0][differs[0]]) if len(differs) else shorter
        raise InputError(
            f"The models see {a.states_LND.shape[1]} and {b.states_LND.shape[1]} tokens, first differing in text "
            f"{text}; compare them by pooled texts (tokens=None) or give both the same tokenizer."
        )
    for name, what in (("groups_N", "text numbers"), ("token_ids_N", "token ids")):
        first, second = getattr(a, name), getattr(b, name)
        if first is None or second is None:
            continue
        wrong = np.flatnonzero(np.asarray(first) != np.asarray(second))
        if len(wrong):
            row = int(wrong[0])
            raise InputError(
                f"The {what} of the two models differ in {len(wrong)} of {len(first)} rows, first in text "
                f"{int(a.groups_N[row])} (row {row}: {first[row]} and {second[row]}); compare pooled texts instead."
            )


def unit_rms_rows(states_LND: np.ndarray, keep: np.ndarray, layers: Sequence[int] | None = None) -> np.ndarray:
    """The kept rows of each layer, centred and scaled to unit RMS, float32; layer by layer to bound memory."""
    chosen = range(len(states_LND)) if layers is None else layers
    out = np.empty((len(chosen), int(keep.sum()), states_LND.shape[2]), np.float32)
    for place, layer in enumerate(chosen):
        out[place] = np.asarray(unit_rms(jnp.asarray(states_LND[layer][keep], jnp.float32)))
    return out
