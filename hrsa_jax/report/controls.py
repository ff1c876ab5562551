"""What a study's controls say, in words and as rows: positive control, A/A, power, noise floor, planted truths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hrsa_jax.report import reading
from hrsa_jax.report.measures import CEILING, MEASURES, label
from hrsa_jax.report.phrases import effect_text
from hrsa_jax.runtime.logging import counted

FLOOR_MEASURES = ("cka", "correlation", "knn_5", "knn_10", "knn_50")


@dataclass(frozen=True)
class Effect:
    """A difference in points with its 90% interval, and what it is of."""

    what: str
    estimate: float
    low: float
    high: float
    margin: float

    @property
    def text(self) -> str:
        return effect_text(self.estimate, self.low, self.high, self.margin)


def _null(results: Mapping[str, Any]) -> Mapping[str, Any]:
    return results.get("null_effect") or {}


def _effect(results: Mapping[str, Any], entry: Mapping[str, Any], what: str) -> Effect:
    low, high = entry.get("interval90") or (None, None)
    margin = _null(results).get("margin")
    return Effect(what, *(reading.number(value) for value in (entry.get("estimate"), low, high, margin)))


def positive_control(results: Mapping[str, Any]) -> Effect | None:
    """The sibling that must score lower, or None when it was not run."""
    entry = _null(results).get("positive_control")
    return _effect(results, entry, str(entry.get("what") or "a sibling known to be worse")) if entry else None


def shows(results: Mapping[str, Any]) -> bool:
    """Whether the positive control's interval lies beyond the margin, by the numbers and not by a stored flag alone."""
    control, margin = positive_control(results), reading.number(_null(results).get("margin"))
    stored = (_null(results).get("positive_control") or {}).get("shows")
    if control is None or stored is False or math.isnan(margin):
        return False
    return control.low > margin or control.high < -margin


def aa(results: Mapping[str, Any]) -> list[Effect]:
    """base-Emb against base-Emb of another seed, every pair of seeds."""
    pairs = (_null(results).get("aa") or {}).get("pairs") or []
    return [
        _effect(results, pair, "seed {} minus seed {}".format(*reversed(pair.get("seeds") or ("?", "?"))))
        for pair in pairs
    ]


def sentences(results: Mapping[str, Any]) -> list[str]:
    """How sure the verdict is: power, what the positive control saw, what equal models differ by."""
    return [text for text in (_power(results), _control(results), _aa(results)) if text]


def _power(results: Mapping[str, Any]) -> str:
    entry = _null(results).get("power")
    share = reading.number((entry or {}).get("power"))
    if not entry or math.isnan(share):
        return ""
    sizes = f"{counted(int(entry.get('tasks') or 0), 'task')} and {counted(int(entry.get('seeds') or 0), 'seed')}"
    rate = f"{100 * share:.0f}%"
    text = f'Power: if the two were truly equal, a study of {sizes} would say "no advantage" in {rate} of cases'
    if share < 0.8 and entry.get("needed_tasks") and entry.get("needed_seeds"):
        word = str(_null(results).get("word"))
        if "(needs " not in word:  # else the answer says already what it would take
            needed = [str(n) if n <= 1000 else "more than 1000" for n in (entry["needed_tasks"], entry["needed_seeds"])]
            text += f" (80% would take {needed[0]} tasks, or {needed[1]} seeds)"
    return text + "."


def _control(results: Mapping[str, Any]) -> str:
    control = positive_control(results)
    if control is None:
        return "No positive control is on record, so it is not shown that this study could have seen a difference."
    margin = reading.number(_null(results).get("margin"))
    said = f"Positive control ({control.what}): {control.text} against base-Emb"
    if shows(results):
        return f"{said}, beyond the margin of {margin:g}: a difference of that size is seen."
    return f"{said}, not beyond the margin of {margin:g}: it is not shown that this study could have seen a difference."


def _aa(results: Mapping[str, Any]) -> str:
    found = aa(results)
    if not found:
        return ""
    margin = reading.number(_null(results).get("margin"))
    largest = max(found, key=lambda effect: abs(effect.estimate))
    inside = abs(largest.estimate) <= margin
    word = (
        "inside the margin"
        if inside
        else "as an estimate OUTSIDE the margin, so the margin is finer than the noise of training"
    )
    return f"A/A: base-Emb of other seeds differs by at most {largest.text}, {word}."


def rows(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(control, what it found, reading) of everything that was or was not run."""
    not_run = "not run"
    margin = reading.number(_null(results).get("margin"))
    out = []
    control = positive_control(results)
    found = not_run if control is None else f"{control.what}: {control.text}"
    seen = "so sensitivity is not shown" if control is None else ""
    if control is not None:
        seen = (
            "beyond the margin: differences are seen"
            if shows(results)
            else "not beyond the margin: sensitivity not shown"
        )
    out.append(("Positive control", found, seen))
    pairs = aa(results)
    inside = all(abs(pair.estimate) <= margin for pair in pairs)
    out.append(
        (
            "A/A, equal models of other seeds",
            "; ".join(f"{pair.what}: {pair.text}" for pair in pairs) or not_run,
            ("all inside the margin" if inside else "not all inside the margin")
            if pairs
            else "the margin is unchecked",
        )
    )
    p = reading.number(_null(results).get("sign_flip_p"))
    if not math.isnan(p):
        out.append(("Sign-flip permutation over tasks", f"p = {p:.3f}", "beside the interval; ignores noise of seeds"))
    power = _power(results)
    out.append(
        (
            "Power",
            power.removeprefix("Power: ").capitalize() or not_run,
            "" if power else "one seed: the spread between runs is unknown",
        )
    )
    planted = results.get("planted") or []
    held = sum(bool(check.get("holds")) for check in planted)
    word = (
        "the measures find what was planted" if planted and held == len(planted) else "a measure missed a planted truth"
    )
    out.append(("Planted truths", f"{held} of {len(planted)} hold" if planted else not_run, word if planted else ""))
    runs = floor_runs(results)
    out.append(("Noise floor", ", ".join(runs) if runs else not_run, "the table below" if runs else ""))
    index = results.get("realignment_index")
    measured = (
        f"{len(realignment_rows(results))} measures"
        if index
        else not_run
        if index is None or CEILING not in (results.get("hrsa") or {})
        else "no gap between backbones and ceiling"
    )
    reading_of_it = "" if measured != not_run else "the ceiling needs two seeds"
    out.append(("Seed ceiling and realignment index", measured, "section 4" if index else reading_of_it))
    return out


def planted(results: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(name, expected, found, word) of each planted truth."""
    out = []
    for check in results.get("planted") or []:
        found = ", ".join(f"{label(name)} {reading.number(v):.3f}" for name, v in (check.get("found") or {}).items())
        word = "holds" if check.get("holds") else "DOES NOT HOLD"
        out.append((str(check.get("name")), str(check.get("expected") or ""), found, word))
    return out


def floor_runs(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """{how it was run: {measure: curve}} of the model against itself."""
    return {str(name): run for name, run in ((results.get("noise_floor") or {}).get("runs") or {}).items() if run}


def floor_curve(results: Mapping[str, Any], measure: str) -> reading.Curve | None:
    """The lowest similarity that numerics alone gave, layer by layer."""
    curves = [found for run in floor_runs(results).values() if (found := reading.curve(run.get(measure))) is not None]
    if not curves or any(not np.array_equal(found.layers, curves[0].layers) for found in curves):
        return None
    lowest = np.fmin.reduce([found.value for found in curves])
    missing = np.full(len(lowest), np.nan)
    return reading.Curve(curves[0].layers, lowest, missing, missing)


def floor_table(results: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(measure, mean over layers for each run) of the noise floor."""
    runs = floor_runs(results)
    out = []
    for measure in FLOOR_MEASURES:
        curves = [reading.curve(run.get(measure)) for run in runs.values()]
        if any(found is not None for found in curves):
            cells = [
                "—" if c is None else f"{np.nanmean(c.value):.3f} (lowest {np.nanmin(c.value):.3f})" for c in curves
            ]
            out.append((MEASURES[measure].short, cells))
    return out


def realignment_rows(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(measure, index at the last layer that has one, layers that have one) of the realignment index.

    Measures of similarity only: a probe's accuracy on its own model does not say how alike two models are.
    """
    out = []
    for measure, entry in (results.get("realignment_index") or {}).items():
        found = reading.curve(entry)
        if found is None or measure not in MEASURES or not MEASURES[measure].direction:
            continue
        value, low, high = found.at(found.last)
        interval = "no interval" if math.isnan(low) else f"[{low:.2f}, {high:.2f}]"
        where = f"layer {found.last}" + ("" if found.last == found.layers[-1] else ", not the last one")
        layers = f"{int(np.isfinite(found.value).sum())} of {len(found.layers)}"
        out.append((label(measure), f"{value:.2f} {interval} at {where}", layers))
    return out
