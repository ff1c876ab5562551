"""What every HRSA measure is called, which way is "more alike", and how to read it: one table for all of the report."""

from __future__ import annotations

from dataclasses import dataclass

BACKBONES = "base_vs_reasoning"
EMBEDDINGS = "base-Emb_vs_reasoning-Emb"
PAIRS = (BACKBONES, EMBEDDINGS)
CEILING = "base-Emb_vs_base-Emb_other_seed"  # two embedding models of one backbone, when there are seeds
PAIR_LABELS = {
    BACKBONES: "backbones (base vs reasoning)",
    EMBEDDINGS: "embedding models (base-Emb vs reasoning-Emb)",
    CEILING: "seed ceiling (base-Emb, two seeds)",
}
PAIR_SHORT = {BACKBONES: "backbones", EMBEDDINGS: "embedding models", CEILING: "seed ceiling"}


@dataclass(frozen=True)
class Measure:
    """One measure: its label, its level, its direction (+1: higher is more alike, -1: lower, 0: neither)."""

    name: str
    label: str
    short: str
    level: str
    direction: int
    reading: str


_ROWS = (
    ("correlation", "mean per-dimension correlation", "correlation", "representation", 1,
     "1 = every coordinate carries the same signal in both models"),
    ("procrustes_residual", "variance left after the best rotation", "rotation residual", "representation", -1,
     "0 = one model is a rotation of the other; 1 = no rotation helps; where few rows fit the map, words it never saw "
     "raise it, at layer 0 even for equal models"),
    ("procrustes_cosine", "cosine after the best rotation", "rotated cosine", "representation", 1,
     "1 = every token points the same way once rotated"),
    ("inverse_row_entropy", "inverse row entropy of the rotation", "inverse row entropy", "representation", 1,
     "a picture of the map from one model onto the other, one number a layer: 1 = every axis goes to one axis of the "
     "other, the Haar line = each is smeared over all, as by a random rotation"),
    ("cka", "linear CKA, debiased, sinks out", "CKA", "geometry", 1,
     "1 = same global geometry up to rotation and scale; 0 = unrelated"),
    ("cka_biased", "linear CKA, biased form", "CKA (biased)", "geometry", 1,
     "the published form; grows with dimension and shrinking samples"),
    ("cka_with_sinks", "linear CKA, attention sinks kept", "CKA (with sinks)", "geometry", 1,
     "a few tokens of huge norm decide it; compare with sinks out"),
    ("knn_5", "overlap of the 5 nearest neighbours", "5-NN overlap", "geometry", 1,
     "1 = same neighbours for every token; chance is what unrelated models share"),
    ("knn_10", "overlap of the 10 nearest neighbours", "10-NN overlap", "geometry", 1,
     "1 = same neighbours for every token; chance is what unrelated models share"),
    ("knn_50", "overlap of the 50 nearest neighbours", "50-NN overlap", "geometry", 1,
     "1 = same neighbours for every token; chance is what unrelated models share"),
    *(
        (f"knn_{k}_other_texts", f"overlap of the {k} nearest neighbours from other texts", f"{k}-NN, other texts",
         "geometry", 1, "neighbours from the same text left out")
        for k in (5, 10, 50)
    ),
    *(
        (f"knn_{k}_other_tokens", f"overlap of the {k} nearest neighbours with another token",
         f"{k}-NN, other tokens", "geometry", 1, "neighbours that are the same token left out")
        for k in (5, 10, 50)
    ),
    *(
        (f"knn_{k}_with_sinks", f"overlap of the {k} nearest neighbours, attention sinks kept",
         f"{k}-NN (with sinks)", "geometry", 1, "compare with sinks out")
        for k in (5, 10, 50)
    ),
    ("cka_zscored", "linear CKA, every dimension at unit variance", "CKA (z-scored)", "geometry", 1,
     "no single dimension of large variance can decide it"),
    ("cka_top_pc_removed", "linear CKA, first principal component removed", "CKA (top PC out)", "geometry", 1,
     "what is left once the largest direction is gone"),
    ("probe_source", "probe of base, tested on base", "base's own probe", "function", 0,
     "ceiling: accuracy of a linear probe on the model it was fitted on"),
    ("probe_target", "probe of reasoning, tested on reasoning", "reasoning's own probe", "function", 0,
     "ceiling: accuracy of a linear probe on the model it was fitted on"),
    ("probe_transfer", "probe of base, tested on reasoning", "probe transfer", "function", 0,
     "accuracy when base's probe reads reasoning's vectors as they are"),
    ("probe_transfer_aligned", "probe transfer after rotation", "aligned transfer", "function", 0,
     "accuracy when reasoning's vectors are first rotated onto base's"),
    ("probe_agreement", "agreement of base's probe on the two models", "probe agreement", "function", 1,
     "1 = both models' probes give every text the same label"),
)  # fmt: skip
MEASURES = {row[0]: Measure(*row) for row in _ROWS}
# The measures whose backbone -> embedding change is charted and put into words, one or two per level.
REALIGNED = ("correlation", "procrustes_residual", "inverse_row_entropy", "cka", "knn_10", "knn_50", "probe_agreement")


def label(name: str) -> str:
    """The measure's label; a name this version does not know is shown as it is."""
    return MEASURES[name].label if name in MEASURES else name.replace("_", " ")
