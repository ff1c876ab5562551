"""The answer in plain words, for the terminal and for the page: no claim without its interval."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from hrsa_jax.report import controls, reading
from hrsa_jax.report.measures import BACKBONES, EMBEDDINGS, MEASURES, REALIGNED

_INDENT: dict[str, Any] = {"initial_indent": "  ", "subsequent_indent": "  "}
UNSHOWN = "; sensitivity not shown"


@dataclass(frozen=True)
class Paragraph:
    """A question, its answer, and the numbers behind the answer."""

    question: str
    answer: str
    numbers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """headline: one sentence; word: the verdict word; paragraphs: question and answer; warnings: what to distrust."""

    headline: str
    word: str
    paragraphs: tuple[Paragraph, ...]
    warnings: tuple[str, ...]

    def text(self, width: int = 80) -> str:
        """The summary as plain lines for a terminal."""
        lines = [*textwrap.wrap(self.headline, width), ""]
        for paragraph in self.paragraphs:
            lines += [paragraph.question, *textwrap.wrap(paragraph.answer, width, **_INDENT)]
            for item in paragraph.numbers:
                lines += textwrap.wrap(f"- {item}", width, initial_indent="  ", subsequent_indent="    ")
            lines.append("")
        for warning in self.warnings:
            lines += textwrap.wrap(f"! {warning}", width, subsequent_indent="  ")
        return "\n".join(lines).rstrip() + "\n"


def summary(results: Mapping[str, Any]) -> Summary:
    """Put a study's results into words.

    Args:
      results: a validated results.json.

    Returns:
      The summary; whatever was not measured is said to be so.
    """
    word, doubts = verdict_word(results)
    paragraphs = (
        Paragraph("Does reasoning embed better?", _benchmark_text(results, word)),
        _inside(results),
        _realignment(results),
        Paragraph("How sure is this?", _certainty_text(results, word)),
    )
    return Summary(_headline(results, word), word, paragraphs, tuple(doubts + _warnings(results)))


def seed_count(results: Mapping[str, Any]) -> int:
    """How many seeds both embedding models were benchmarked with."""
    found = reading.differences(results)
    return 0 if found is None else len(found.seeds)


def has_pair(results: Mapping[str, Any], pair: str) -> bool:
    return bool((results.get("hrsa") or {}).get(pair))


def effect(results: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """(estimate, low, high, margin) in points; NaN where missing."""
    null_effect = results.get("null_effect") or {}
    low, high = null_effect.get("interval90") or (None, None)
    values = (null_effect.get("estimate"), low, high, null_effect.get("margin"))
    estimate, low, high, margin = (reading.number(value) for value in values)
    return estimate, low, high, margin


def verdict_word(results: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The verdict word that the interval allows, and a doubt for each stored word that claims something else."""
    estimate, low, high, margin = effect(results)
    stored = str((results.get("null_effect") or {}).get("word") or "")
    if any(math.isnan(value) for value in (estimate, low, high)):
        return "not measured", []
    if seed_count(results) < 2:
        kept = stored if stored.startswith("inconclusive") else "inconclusive"
        doubt = f'The stored verdict "{stored}" is not shown: with one seed the word is always "inconclusive".'
        return kept, [] if kept == stored or not stored else [doubt]
    if not math.isnan(margin) and -margin <= low and high <= margin:
        rule = f"no advantage (equivalent within {margin:g})"
    elif low > 0:
        rule = "advantage"
    elif high < 0:
        rule = "disadvantage"
    else:
        rule = "inconclusive"
    if stored.split(" ")[0].rstrip(";") == rule.split(" ")[0]:
        if UNSHOWN in stored or controls.shows(results):
            return stored, []
        return stored + UNSHOWN, [f'To the stored verdict "{stored}" is added what its controls do not show.']
    doubt = f'The stored verdict "{stored}" does not follow from its interval, which says "{rule}".'
    return rule + ("" if controls.shows(results) else UNSHOWN), [doubt] if stored else []


def variant_failed(results: Mapping[str, Any]) -> bool:
    """True when the reasoning variant was not shown to reason better than the base."""
    reasoning = results.get("reasoning") or {}
    text = str(reasoning.get("label") or "").lower()
    if text:
        return "rose significantly" not in text
    before, after = reading.accuracy(results, "before"), reading.accuracy(results, "after")
    if before is None or after is None or not (before.n > 0 and after.n > 0):
        return True
    hits = [round(entry.rate * entry.n) for entry in (after, before)]
    table = [hits, [round(after.n) - hits[0], round(before.n) - hits[1]]]
    return not stats.fisher_exact(table, alternative="greater").pvalue < 0.05


def variant_label(results: Mapping[str, Any]) -> str:
    """The label that goes with the reasoning variant wherever it is named."""
    text = (results.get("reasoning") or {}).get("label")
    if text:
        return str(text)
    if reading.accuracy(results, "before") is None or reading.accuracy(results, "after") is None:
        return "accuracy before and after was not measured in this study"
    return "accuracy did not rise significantly" if variant_failed(results) else "accuracy rose significantly"


def points(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:+.2f}"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def estimate_text(value: float, low: float, high: float, digits: int = 3) -> str:
    """`0.912 [0.900, 0.921]`, or the value with "no interval"."""
    if math.isnan(value):
        return "not measured"
    if math.isnan(low) or math.isnan(high):
        return f"{value:.{digits}f} (no interval)"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _headline(results: Mapping[str, Any], word: str) -> str:
    estimate, low, high, margin = effect(results)
    if word == "not measured":
        return "This study has no benchmark verdict: the difference between the embedding models was not measured."
    kind = word.split(" ")[0].rstrip(";")
    opening = {
        "no": "Reasoning brings no advantage for embedding here",
        "advantage": "The reasoning backbone embeds better here",
        "disadvantage": "The reasoning backbone embeds worse here",
    }.get(kind, "This study cannot say whether reasoning embeds better")
    within = "" if math.isnan(margin) else f"; the margin is +/-{margin:g}"
    return (
        f"{opening}: reasoning-Emb minus base-Emb is {points(estimate)} points, "
        f"90% interval {points(low)} to {points(high)}, {counted(seed_count(results), 'seed')}{within}."
    )


def _benchmark_text(results: Mapping[str, Any], word: str) -> str:
    estimate, low, high, margin = effect(results)
    if word == "not measured":
        return "Not measured: results.json holds no estimate with an interval for the two embedding models."
    found = reading.differences(results)
    scope = "" if found is None else f" over {counted(_tasks(results), 'task')} and {counted(len(found.seeds), 'seed')}"
    method = (results.get("null_effect") or {}).get("method") or "method not stated"
    text = (
        f"Verdict: {word}. With one identical recipe, reasoning-Emb minus base-Emb is {points(estimate)} points"
        f"{scope} (90% interval {points(low)} to {points(high)}; {method}; "
        f"margin {'not stated' if math.isnan(margin) else f'+/-{margin:g} points'})."
    )
    if results.get("reasoning") is not None and variant_failed(results):
        text += f' Read this with care: the reasoning variant is labelled "{variant_label(results)}".'
    if results.get("demonstration"):
        label = str(results.get("label") or "small model, small offline tasks").rstrip(".")
        if not label.lower().startswith("demonstration"):
            label = f"This is a demonstration: {label}"
        text += f" {label}. It is not evidence about reasoning models in general."
    return text


_SAMENESS = ((0.95, "nearly the same"), (0.8, "mostly the same"), (0.5, "partly the same"), (0.2, "mostly different"))
SAMENESS_NOTE = (
    "The words for CKA and neighbour overlap go by the lower end of the 95% interval: from 0.95 nearly the same, "
    "from 0.8 mostly the same, from 0.5 partly the same, from 0.2 mostly different, below largely different."
)


def sameness(low: float) -> str:
    """A word for a similarity between 0 and 1, by the lower end of its interval."""
    return next((word for bound, word in _SAMENESS if low >= bound), "largely different")


def _inside(results: Mapping[str, Any]) -> Paragraph:
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


def _realignment(results: Mapping[str, Any]) -> Paragraph:
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
            f"{known.short}: {'no interval' if math.isnan(low) else f'{value:+.3f} [{low:+.3f}, {high:+.3f}]'}"
        )
    if not numbers:
        has_pair = any(reading.pair_curve(results, EMBEDDINGS, measure) for measure in REALIGNED)
        why = "no paired gap was computed" if has_pair else "there are no layer curves for the embedding models"
        return Paragraph(question, f"Not measured: {why}.")
    said = "; ".join(f"{side} {', '.join(names)}" for side, names in sides.items() if names)
    lead = _over_layers(results) + (
        f"At the last layer the embedding models are, compared with the backbones, {said}. A gap (embedding pair "
        "minus backbone pair, paired by text) counts as a change where its 95% interval excludes 0. All gaps:"
    )
    return Paragraph(question, lead, tuple(numbers))


def _over_layers(results: Mapping[str, Any]) -> str:
    """Whether conversion brought the two together, by how many layers it did so in: a sentence, or nothing."""
    counted = {MEASURES[m].short: c for m in ("cka", "knn_10", "correlation") if (c := gap_counts(results, m))}
    if not counted:
        return ""
    more, less = (sum(counts[side] for counts in counted.values()) for side in (0, 1))
    word = "It moved them further apart" if less > 2 * more else "It gave no clear direction"
    if more > 2 * less:
        word = "It brought them closer together"
    listed = "; ".join(f"{name} {c[0]} more alike, {c[1]} less, of {c[2]}" for name, c in counted.items())
    return f"{word if more + less else 'No change can be shown'}, counted in layers: {listed}. "


def _tasks(results: Mapping[str, Any]) -> int:
    found = reading.differences(results)
    return 0 if found is None else sum(found.in_verdict)


def tasks_needed(results: Mapping[str, Any]) -> int:
    """Tasks at which the 90% interval would be as narrow as the margin, at the spread seen here; 0 when unknown."""
    found = reading.differences(results)
    _, low, high, margin = effect(results)
    if found is None or math.isnan(low) or math.isnan(high) or not margin > 0:
        return 0
    return max(2, math.ceil(_tasks(results) * ((high - low) / (2 * margin)) ** 2))


def _certainty_text(results: Mapping[str, Any], word: str) -> str:
    if word == "not measured":
        return "There is no interval to judge by."
    seeds, needed = seed_count(results), tasks_needed(results)
    text = []
    if seeds < 2:
        text.append(
            "One seed: the interval shows the spread between tasks only, not between training runs, so the word is "
            '"inconclusive" whatever the numbers say. A claim needs at least 3 seeds.'
        )
    if needs := re.search(r"\(needs ([^)]+)\)", word):
        text.append(f"To tell a difference from none with 80% power it would take {needs.group(1)}.")
    if word.startswith("inconclusive") and "needs" not in word and needed > _tasks(results):
        text.append(
            f"At the spread seen here about {needed} tasks would bring the interval down to the width of the margin, "
            "if the true difference is 0."
        )
    text += controls.sentences(results)
    of = ", for one seed of each embedding model" if seeds > 1 and has_pair(results, EMBEDDINGS) else ""
    text.append(
        f"Intervals of the layer measures are over texts (95%){of}; those of the benchmark are over tasks"
        f"{' and seeds' if seeds > 1 else ''} (90%)."
    )
    text += _bag_of_words(results)
    return " ".join(text)


def _bag_of_words(results: Mapping[str, Any]) -> list[str]:
    """How strong these embedding models are beside counting words, where that was scored."""
    rows = {row.model: row.scores for row in reading.rows(results) if row.model in ("base-Emb", "bag-of-words")}
    tasks = [t.name for t in reading.tasks(results) if len(rows) == 2 and all(t.name in row for row in rows.values())]
    above = sum(rows["bag-of-words"][task] > rows["base-Emb"][task] for task in tasks)
    return [f"A bag of words scores above base-Emb on {above} of {len(tasks)} tasks."] if above else []


def _warnings(results: Mapping[str, Any]) -> list[str]:
    label = variant_label(results)  # said in the verdict itself, so not once more
    out = [str(item) for item in results.get("warnings") or [] if label not in str(item)]
    table = reading.rows(results)
    for row in table:
        lost = [task.name for task in reading.tasks(results) if math.isnan(row.scores.get(task.name, math.nan))]
        if lost:
            out.append(
                f"{row.model} ({row.attention or 'n/a'}) has no score for {', '.join(lost)}; its mean is not shown."
            )
    found, (estimate, *_) = reading.differences(results), effect(results)
    if found is not None and not math.isnan(estimate):
        mean = float(np.mean(found.d_TS[np.array(found.in_verdict)])) if any(found.in_verdict) else math.nan
        if abs(mean - estimate) > 0.05:
            out.append(
                f"The stored estimate ({points(estimate)}) is not the mean of the listed differences ({points(mean)}): "
                "tasks may have been left out of the verdict."
            )
    return out


def terminal_table(results: Mapping[str, Any], width: int = 80) -> str:
    """The benchmark as a plain table that fits `width` columns: tasks down, models across, scores in points.

    Untrained backbones show the better of their attention modes on the mean, as the verdict compares with it.
    """
    listed = reading.tasks(results)
    if not listed:
        return "No benchmark scores.\n"
    best: dict[str, reading.Row] = {}
    for row in reading.rows(results):
        mean, held = row.mean(listed), best.get(row.model)
        if held is None or (not math.isnan(mean) and not held.mean(listed) >= mean):
            best[row.model] = row
    short = {"reasoning-Emb": "reas-Emb", "reasoning": "reas", "bag-of-words": "BoW"}
    columns = list(best.values())
    while len(columns) > 1 and 12 + 9 * len(columns) > width:
        columns.pop()
    name_width = max(12, min(max(len(task.name) for task in listed), width - 9 * len(columns)))
    lines = ["task".ljust(name_width) + "".join(short.get(row.model, row.model)[:8].rjust(9) for row in columns)]
    lines.append("-" * (name_width + 9 * len(columns)))
    for task in listed:
        cells = [row.scores.get(task.name, math.nan) for row in columns]
        lines.append(_clip(task.name, name_width) + "".join(_cell(100 * value) for value in cells))
    lines.append("mean".ljust(name_width) + "".join(_cell(100 * row.mean(listed)) for row in columns))
    lines += textwrap.wrap("points (0-100), mean over seeds; backbones in their better attention mode", width)
    return "\n".join(lines) + "\n"


def _clip(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else text[: width - 2] + ".."


def _cell(value: float) -> str:
    return ("-" if math.isnan(value) else f"{value:.1f}").rjust(9)
