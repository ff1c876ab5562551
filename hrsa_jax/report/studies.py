"""Several studies side by side: one row a study, verdicts corrected by Holm over all of them, and what differs.

Studies are never pooled. Correction can only weaken a verdict: a claim of one study stays, or becomes inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from hrsa_jax.evaluation.statistics import LEVEL, crossed_interval, holm, one_seed_interval, sign_flip_p
from hrsa_jax.report import reading, verdict
from hrsa_jax.report.measures import BACKBONES, CEILING, EMBEDDINGS

DIFFERENCE_LEVEL = 1 - LEVEL  # two-sided, as one study's 90% interval has it
EQUIVALENCE_LEVEL = (1 - LEVEL) / 2  # of each of the two one-sided tests
WEAKENED = "inconclusive after Holm's correction"
KEY_MEASURES = ("cka", "knn_10", "procrustes_residual", "correlation", "probe_transfer", "probe_transfer_aligned")
OWN_PROBE = "probe_target"  # what a transferred probe could reach at most
KIND = "comparison of studies"


@dataclass(frozen=True)
class StudyRow:
    """One study: scores 0-1 (mean over the tasks and seeds of the verdict), differences in points, p values.

    p, p_holm: two-sided, of no difference, from the study's own t interval. equivalence_p, equivalence_p_holm: of a
    difference as large as the margin (two one-sided tests). sign_flip_p_holm: the permutation over tasks, beside it.
    word: the study's own verdict; corrected: what remains of it. flags: what to know before quoting the row.
    """

    name: str
    pair: str
    base_Emb: float
    reasoning_Emb: float
    estimate: float
    low: float
    high: float
    margin: float
    tasks: int
    seeds: tuple[Any, ...]
    seed_means: tuple[float, ...]
    p: float
    p_holm: float
    equivalence_p: float
    equivalence_p_holm: float
    sign_flip_p: float
    sign_flip_p_holm: float
    word: str
    corrected: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """Similarity at the last layer, of one measure: (value, low, high) for each pair; NaN where it was not measured."""

    study: str
    measure: str
    layer: int
    backbones: tuple[float, float, float]
    embeddings: tuple[float, float, float]
    ceiling: tuple[float, float, float]


@dataclass(frozen=True)
class Studies:
    rows: tuple[StudyRow, ...]
    summaries: tuple[Summary, ...]
    warnings: tuple[str, ...]
    demonstration: bool


def compare(studies: Mapping[str, Mapping[str, Any]]) -> Studies:
    """The table over studies.

    Args:
      studies: name -> validated results.json.
    """
    drafts = [_draft(name, results) for name, results in studies.items()]
    adjusted = {key: _adjusted([draft[key] for draft in drafts]) for key in ("p", "equivalence_p", "sign_flip_p")}
    rows = []
    for place, draft in enumerate(drafts):
        after: dict[str, Any] = {f"{key}_holm": values[place] for key, values in adjusted.items()}
        word = _corrected(draft["word"], after["p_holm"], after["equivalence_p_holm"])
        rows.append(StudyRow(**draft, **after, corrected=word))
    summaries = [summary for name, results in studies.items() for summary in _summaries(name, results)]
    warnings = [*_unlike(studies), *_same_pair(studies), *_unusable(rows), *_doubts(studies)]
    demonstration = all(results.get("demonstration") for results in studies.values())
    return Studies(tuple(rows), tuple(summaries), tuple(warnings), demonstration)


def record(studies: Studies, sources: Mapping[str, str], command: str) -> dict[str, Any]:
    """The comparison's results.json: every number on its page."""
    return {
        "schema": 1,
        "kind": KIND,
        "demonstration": studies.demonstration,
        "sources": dict(sources),
        "studies": [asdict(row) for row in studies.rows],
        "hrsa": [asdict(summary) for summary in studies.summaries],
        "levels": {"difference": DIFFERENCE_LEVEL, "equivalence": EQUIVALENCE_LEVEL},
        "warnings": list(studies.warnings),
        "provenance": {"command": command},
    }


def _draft(name: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """A row but for what needs the other rows."""
    found = reading.differences(results)
    d_TS = np.zeros((0, 0)) if found is None else found.d_TS[np.array(found.in_verdict)]
    estimate, low, high, margin = verdict.effect(results)
    df = _degrees(results, d_TS)
    p, equivalence = _p_values(estimate, low, high, margin, df)
    usable = d_TS.shape[0] > 1 and bool(np.isfinite(d_TS).all())
    models = {row.model: row for row in reading.rows(results) if row.model in ("base-Emb", "reasoning-Emb")}
    used = [] if found is None else [t for t, yes in zip(found.tasks, found.in_verdict, strict=True) if yes]
    means = {model: row.mean(used) if used else math.nan for model, row in models.items()}
    return {
        "name": name,
        "pair": pair_name(results),
        "base_Emb": means.get("base-Emb", math.nan),
        "reasoning_Emb": means.get("reasoning-Emb", math.nan),
        "estimate": estimate,
        "low": low,
        "high": high,
        "margin": margin,
        "tasks": len(used),
        "seeds": () if found is None else found.seeds,
        "seed_means": tuple(float(v) for v in d_TS.mean(axis=0)) if usable else (),
        "p": p,
        "equivalence_p": equivalence,
        "sign_flip_p": sign_flip_p(d_TS) if usable else math.nan,
        "word": verdict.verdict_word(results)[0],
        "flags": _flags(results),
    }


def pair_name(results: Mapping[str, Any]) -> str:
    """`base -> how the reasoning model came about`, from what the study recorded."""
    models = results.get("models") or {}
    base = str((models.get("base") or {}).get("source") or "base")
    method = str((results.get("reasoning") or {}).get("method") or "")
    if method in ("", "existing checkpoint"):
        method = str((models.get("reasoning") or {}).get("source") or "reasoning model")
    return f"{base} and {method}"


def _degrees(results: Mapping[str, Any], d_TS: np.ndarray) -> float:
    """Degrees of freedom of the study's interval: as stored, or again from the scores."""
    stored = reading.number((results.get("null_effect") or {}).get("df"))
    if stored > 0:
        return stored
    if d_TS.shape[0] < 2 or not np.isfinite(d_TS).all():
        return math.nan
    return crossed_interval(d_TS)[3] if d_TS.shape[1] > 1 else one_seed_interval(d_TS[:, 0])[3]


def _p_values(estimate: float, low: float, high: float, margin: float, df: float) -> tuple[float, float]:
    """(no difference, two-sided; a difference as large as the margin) by the t distribution of the 90% interval."""
    if any(math.isnan(value) for value in (estimate, low, high, df)):
        return math.nan, math.nan
    error = (high - low) / 2 / float(stats.t.ppf((1 + LEVEL) / 2, df))

    def beyond(distance: float) -> float:
        if error == 0:
            return 0.0 if distance > 0 else 1.0
        return float(stats.t.sf(distance / error, df))

    equivalence = math.nan if math.isnan(margin) else beyond(margin - abs(estimate))
    return min(1.0, 2 * beyond(abs(estimate))), equivalence


def _adjusted(p_values: Sequence[float]) -> list[float]:
    """Holm over the studies that have a p value; NaN stays."""
    at = [place for place, p in enumerate(p_values) if not math.isnan(p)]
    out = [math.nan] * len(p_values)
    for place, value in zip(at, holm([p_values[place] for place in at]) if at else [], strict=True):
        out[place] = float(value)
    return out


def _corrected(word: str, p_holm: float, equivalence_holm: float) -> str:
    """The study's own word, where the correction leaves it standing."""
    kind = word.split(" ")[0].rstrip(";")
    stands = {
        "advantage": p_holm <= DIFFERENCE_LEVEL,
        "disadvantage": p_holm <= DIFFERENCE_LEVEL,
        "no": equivalence_holm <= EQUIVALENCE_LEVEL,
    }
    if stands.get(kind, True):
        return word
    return WEAKENED + (verdict.UNSHOWN if word.endswith(verdict.UNSHOWN) else "")


def _flags(results: Mapping[str, Any]) -> tuple[str, ...]:
    flags = []
    if results.get("demonstration"):
        flags.append("demonstration")
    if verdict.seed_count(results) == 1:
        flags.append("one seed")
    if results.get("reasoning") is not None and verdict.variant_failed(results):
        flags.append(f"reasoning variant: {verdict.variant_label(results)}")
    return tuple(flags)


def _summaries(name: str, results: Mapping[str, Any]) -> list[Summary]:
    out = []
    for measure in (*KEY_MEASURES, OWN_PROBE):
        curves = [reading.pair_curve(results, pair, measure) for pair in (BACKBONES, EMBEDDINGS, CEILING)]
        found = [curve for curve in curves[:2] if curve is not None]
        if not found:
            continue
        layer = min(curve.last for curve in found)
        missing = (math.nan, math.nan, math.nan)
        values = [missing if curve is None else curve.at(layer) for curve in curves]
        out.append(Summary(name, measure, layer, *values))
    return out


# What must be equal before two rows may be read against each other: (what it is called, where it stands, consequence).
_EQUAL: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("margin", ("null_effect", "margin"), "an equivalence means what its own margin says"),
    ("tasks", ("null_effect", "tasks"), "scores and differences are means over other tasks"),
    ("benchmark suite", ("config", "benchmark"), "scores are not of one benchmark"),
    ("conversion recipe", ("config", "convert"), "the embedding models were made by different recipes"),
    ("HRSA setting", ("config", "hrsa"), "similarities are not of one measurement"),
    ("base model", ("models", "base", "fingerprint"), "the studies begin from different base models"),
)
# Settings inside those that leave a run's numbers alone, or that have a line of their own.
_IGNORED = {"margin", "tasks", "seeds", "checkpoint_every", "snapshots", "monitor"}


def _unlike(studies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each thing that differs between studies."""
    out = []
    for what, path, so in _EQUAL:
        flat = {name: _flatten(_at(results, path)) for name, results in studies.items()}
        keys = sorted({key for values in flat.values() for key in values})
        differing = [key for key in keys if len({str(values.get(key)) for values in flat.values()}) > 1]
        if differing:
            shown = "; ".join(
                _told(key, {name: values.get(key) for name, values in flat.items()}) for key in differing[:3]
            )
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            out.append(f"Other {what}: {shown}{more}; {so}.")
    counts = {name: verdict.seed_count(results) for name, results in studies.items()}
    if len(set(counts.values())) > 1:
        out.append(f"Other number of seeds: {_told('', counts)}; fewer seeds make wider intervals.")
    demonstrations = [name for name, results in studies.items() if results.get("demonstration")]
    if demonstrations and len(demonstrations) < len(studies):
        out.append(
            f"Demonstration mixed in: {', '.join(demonstrations)}; do not read it as evidence beside the others."
        )
    return out


def _at(results: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = results
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """{"a.b": leaf}; lists are leaves."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    out: dict[str, Any] = {}
    for key, inner in value.items():
        if key not in _IGNORED:
            out |= _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return out


def _told(key: str, values: Mapping[str, Any]) -> str:
    """`learning_rate sft 0.001, rlvr 0.0003`."""
    shown = []
    for name, value in values.items():
        text = "not stated" if value is None else f"{len(value)} of them" if isinstance(value, list) else f"{value}"
        shown.append(f"{name} {text}")
    return " ".join(part for part in (key, ", ".join(shown)) if part)


def _same_pair(studies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Studies of one pair of backbones: two rows, not one larger study."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, results in studies.items():
        prints = [_at(results, ("models", model, "fingerprint")) for model in ("base", "reasoning")]
        if all(prints):
            groups.setdefault((str(prints[0]), str(prints[1])), []).append(name)
    return [
        f"{' and '.join(names)} are studies of the same two backbones: their seeds are not pooled, and they are not "
        "independent evidence."
        for names in groups.values()
        if len(names) > 1
    ]


def _unusable(rows: Sequence[StudyRow]) -> list[str]:
    lost = [row.name for row in rows if math.isnan(row.p)]
    return (
        [f"No p value for {', '.join(lost)} (no interval in its results): left out of the correction."] if lost else []
    )


def _doubts(studies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [f"{name}: {doubt}" for name, results in studies.items() for doubt in verdict.verdict_word(results)[1]]
