"""What changed inside the models, and what conversion did to that, in words: no claim without its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from hrsa_jax.report import reading
from hrsa_jax.report.measures import BACKBONES, CEILING, EMBEDDINGS, MEASURES, REALIGNED
from hrsa_jax.report.phrases import Paragraph, estimate_text
from hrsa_jax.runtime.logging import counted

_SAMENESS = ((0.95, "nearly the same"), (0.8, "mostly the same"), (0.5, "partly the same"), (0.2, "mostly different"))
SAMENESS_NOTE = (
    "The words for CKA and neighbour overlap go by the lower end of the 95% interval: from 0.95 nearly the same, "
    "from 0.8 mostly the same, from 0.5 partly the same, from 0.2 mostly different, below largely different."
)


# One or two measures a level, in whose layers change is counted.
_COUNTED = ("correlation", "procrustes_residual", "cka", "knn_10", "probe_agreement")


def sameness(low: float) -> str:
    """A word for a similarity between 0 and 1, by the lower end of its interval."""
    return next((word for bound, word in _SAMENESS if low >= bound), "largely different")


def backbones(results: Mapping[str, Any]) -> Paragraph:
    question = "What changed inside the backbone?"
    claims, numbers, layers = [], [], set()
    for measure, what in (("cka", "global geometry"), ("knn_10", "local neighbourhoods")):
        found = reading.pair_curve(results, BACKBONES, measure)
        if found is not None:
            layers.add(found.last)
            claims.append(_sameness_claim(found, measure, what))
    for measure in ("correlation", "procrustes_residual", "probe_source", "probe_transfer"):
        found = reading.pair_curve(results, BACKBONES, measure)
        if found is not None:
            layers.add(found.last)
            note = reading.few_rows(results) if measure == "procrustes_residual" else ""
            numbers.append(f"{MEASURES[measure].label}: {estimate_text(*found.at(found.last))}{note}")
    if not claims and not numbers:
        return Paragraph(question, "Not measured: results.json holds no layer curves for base vs reasoning.")
    where = f"layer {layers.pop()}" if len(layers) == 1 else "each measure's last layer"
    lead = f"Read at {where}, the last one, with 95% intervals over texts: "
    return Paragraph(question, lead + ("; ".join(claims) or "see below") + ".", tuple(numbers))


def _sameness_claim(found: reading.Curve, measure: str, what: str) -> str:
    value, low, high = found.at(found.last)
    word = "cannot be judged" if math.isnan(low) else sameness(low)
    chance = "" if found.chance is None else f", chance {found.chance[np.isfinite(found.chance)][-1]:.3f}"
    verb = "" if math.isnan(low) else "is " if what.endswith("y") else "are "
    return f"{what} {verb}{word} ({MEASURES[measure].short} {estimate_text(value, low, high)}{chance})"


def gap_counts(results: Mapping[str, Any], measure: str) -> tuple[int, int, int] | None:
    """(layers more alike, layers less alike, layers) after conversion, counting only intervals that exclude 0."""
    gap = reading.gap_curve(results, measure)
    if gap is None or not np.isfinite(gap.low).any():
        return None
    direction = MEASURES[measure].direction if measure in MEASURES else 0
    above, below = int((gap.low > 0).sum()), int((gap.high < 0).sum())
    measured = int(np.isfinite(gap.low).sum())
    return (above, below, measured) if direction >= 0 else (below, above, measured)


def conversion(results: Mapping[str, Any]) -> Paragraph:
    question = "What did conversion do to that?"
    sides: dict[str, list[str]] = {"more alike by": [], "less alike by": [], "not clearly changed in": []}
    numbers = []
    for measure in REALIGNED:
        gap, counts = reading.gap_curve(results, measure), gap_counts(results, measure)
        if gap is None or counts is None:
            continue
        known = MEASURES[measure]
        value, low, high = gap.at(gap.last)
        side = "not clearly changed in"
        if low > 0 or high < 0:
            side = "more alike by" if (low > 0) == (known.direction > 0) else "less alike by"
        sides[side].append(known.short)
        numbers.append(
            f"{known.short}: {'no interval' if math.isnan(low) else f'{value:+.3f} [{low:+.3f}, {high:+.3f}]'}; "
            f"{counts[0]} layers closer, {counts[1]} further, of {counts[2]}"
        )
    if not numbers:
        has_pair = any(reading.pair_curve(results, EMBEDDINGS, measure) for measure in REALIGNED)
        why = "no paired gap was computed" if has_pair else "there are no layer curves for the embedding models"
        return Paragraph(question, f"Not measured: {why}.")
    said = "; ".join(f"{side} {', '.join(names)}" for side, names in sides.items() if names)
    lead = _over_layers(results) + (
        f"At the last layer the embedding models are, compared with the backbones, {said}. A gap (embedding pair "
        "minus backbone pair, paired by text) counts as a change where its 95% interval excludes 0. Gaps there:"
    )
    return Paragraph(question, lead, (*numbers, *_sinks(results)))


def _sinks(results: Mapping[str, Any]) -> list[str]:
    """Said where a few tokens of huge norm would decide how alike the embedding models look."""
    out, kept = (reading.pair_curve(results, EMBEDDINGS, name) for name in ("cka", "cka_with_sinks"))
    if out is None or kept is None or not abs(out.at(kept.last)[0] - kept.at(kept.last)[0]) > 0.1:
        return []
    texts = [estimate_text(*entry.at(kept.last)) for entry in (kept, out)]
    return [f"CKA of the embedding models with attention sinks kept: {texts[0]}; without them {texts[1]}"]


def _over_layers(results: Mapping[str, Any]) -> str:
    """Whether conversion brought the two together, and in how many layers that is clear: a sentence, or nothing."""
    listed = {MEASURES[m].short: c for m in _COUNTED if (c := gap_counts(results, m))}
    if not listed:
        return ""
    more, less, layers = (sum(counts[side] for counts in listed.values()) for side in (0, 1, 2))
    word = "It moved them further apart" if less > 2 * more else "It gave no clear direction"
    if more > 2 * less:
        word = "It brought them closer together"
    unclear = layers - more - less
    word = word if more + less else "No change can be shown"
    if more + less and less > more and not (results.get("hrsa") or {}).get(CEILING):
        word += ", if that is more than the scatter of training"
    return (
        f"{word}: of {counted(layers, 'layer reading')} {more} are clearly closer, {less} clearly further apart, "
        f"{unclear} not clearly changed, by their 95% intervals, which are not corrected for their number "
        f"({', '.join(listed)}). {_largest(results)}{_scatter(results) if less > more else ''}"
    )


def _largest(results: Mapping[str, Any]) -> str:
    """Where, and by how much, geometry changed most."""
    said = []
    for measure in ("cka", "knn_10"):
        gap = reading.gap_curve(results, measure)
        if gap is not None and np.isfinite(gap.low).any():
            layer = int(gap.layers[np.nanargmax(np.abs(np.where(np.isfinite(gap.low), gap.value, np.nan)))])
            value, low, high = gap.at(layer)
            said.append(f"{MEASURES[measure].short} {value:+.3f} [{low:+.3f}, {high:+.3f}] at layer {layer}")
    return f"Largest: {'; '.join(said)}. " if said else ""


def _scatter(results: Mapping[str, Any]) -> str:
    """Said where models moved apart: how far two conversions of one backbone do, or that nothing shows it."""
    within, readings = 0, 0
    for measure in _COUNTED:
        embs, ceiling = (reading.pair_curve(results, pair, measure) for pair in (EMBEDDINGS, CEILING))
        if embs is not None and ceiling is not None and np.array_equal(embs.layers, ceiling.layers):
            known = np.isfinite(embs.high) & np.isfinite(ceiling.value)
            up = MEASURES[measure].direction > 0
            alike = embs.high >= ceiling.value if up else embs.low <= ceiling.value
            within, readings = within + int(alike[known].sum()), readings + int(known.sum())
    if readings:
        return (
            f"In {within} of these {readings} the embedding models are still as alike as two conversions of base with "
            "other seeds (their interval reaches the seed ceiling): there it may be the scatter of training. "
        )
    return (
        "Two conversions of one backbone with other seeds differ as well; by how much was not measured (it takes two "
        "seeds), so it is open how much of this is the scatter of training. "
    )
