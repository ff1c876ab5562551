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

from hrsa_jax.report import controls, inside, lowered, reading
from hrsa_jax.report.measures import EMBEDDINGS
from hrsa_jax.report.phrases import Paragraph, points
from hrsa_jax.runtime.logging import counted

UNSHOWN = "; sensitivity not shown"
_NEEDS = re.compile(r" \(needs ([^)]+)\)")


@dataclass(frozen=True)
class Summary:
    """headline: one sentence; word: the verdict word; paragraphs: question and answer; warnings: what to distrust."""

    headline: str
    word: str
    paragraphs: tuple[Paragraph, ...]
    warnings: tuple[str, ...]

    def opening(self, width: int = 80) -> str:
        """The verdict's word and the headline, as plain lines for a terminal."""
        return "\n".join([*_wrapped(f"Verdict: {self.word}.", width), *_wrapped(self.headline, width)])

    def text(self, width: int = 80) -> str:
        """The summary as plain lines for a terminal."""
        lines = [self.opening(width), ""]
        for paragraph in self.paragraphs:
            lines += [paragraph.question, *_wrapped(paragraph.answer, width, "  ", "  ")]
            for item in paragraph.numbers:
                lines += _wrapped(f"- {item}", width, "  ", "    ")
            lines.append("")
        for warning in self.warnings:
            lines += _wrapped(f"! {warning}", width, "", "  ")
        return "\n".join(lines).rstrip() + "\n"


def _wrapped(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


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
        inside.backbones(results),
        inside.conversion(results),
        Paragraph("How sure is this?", _certainty_text(results, word)),
    )
    return Summary(
        _headline(results, word), word, paragraphs, tuple(doubts + lowered.sentences(results) + _warnings(results))
    )


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
        kept = _NEEDS.sub("", stored) if stored.startswith("inconclusive") else "inconclusive"
        doubt = f'The stored verdict "{stored}" is not shown: with one seed the word is always "inconclusive".'
        return kept, [] if stored.startswith("inconclusive") or not stored else [doubt]
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


def _headline(results: Mapping[str, Any], word: str) -> str:
    estimate, low, high, margin = effect(results)
    if word == "not measured":
        return "This study has no benchmark verdict: the difference between the embedding models was not measured."
    kind = word.split(" (")[0].split(";")[0]
    opening = {
        "no advantage": "Reasoning neither helps nor harms embedding here by more than the margin",
        "advantage": "The reasoning backbone embeds better here",
        "disadvantage": "The reasoning backbone embeds worse here",
    }.get(kind, "This study cannot say whether reasoning embeds better")
    within = "" if math.isnan(margin) else f"; the margin is +/-{margin:g} points"
    return (
        f"{opening}: reasoning-Emb minus base-Emb is {points(estimate, margin)} points, "
        f"90% interval {points(low, margin)} to {points(high, margin)}, {counted(seed_count(results), 'seed')}{within}."
    )


def _benchmark_text(results: Mapping[str, Any], word: str) -> str:
    estimate, low, high, margin = effect(results)
    if word == "not measured":
        return "Not measured: results.json holds no estimate with an interval for the two embedding models."
    found = reading.differences(results)
    scope = "" if found is None else f" over {counted(_tasks(results), 'task')} and {counted(len(found.seeds), 'seed')}"
    method = (results.get("null_effect") or {}).get("method") or "method not stated"
    text = (
        f"Verdict: {word}. With one identical recipe, reasoning-Emb minus base-Emb is {points(estimate, margin)} "
        f"points{scope} (90% interval {points(low, margin)} to {points(high, margin)}; {method}; "
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
            '"inconclusive" whatever the numbers say. A claim needs two seeds at the least, three are better; one seed '
            "does not show how far seeds differ, so how many it would take cannot be said."
        )
    if seeds > 1 and (needs := _NEEDS.search(word)):
        text.append(f"To tell a difference from none with 80% power it would take {needs.group(1)}.")
    elif word.startswith("inconclusive") and needed > _tasks(results):
        text.append(
            f"At the spread {'between tasks ' if seeds < 2 else ''}seen here about {needed} tasks would bring the "
            f"interval down to the width of the margin, if the true difference is 0"
            f"{' and seeds added nothing' if seeds < 2 else ''}."
        )
    elif word.startswith("inconclusive") and seeds < 2 and needed:
        text.append("The interval over tasks is as narrow as the margin asks for: what is missing is seeds, not tasks.")
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
    modes: dict[str, list[reading.Row]] = {}
    for row in reading.rows(results):
        modes.setdefault(row.model, []).append(row)
    short = {"reasoning-Emb": "reas-Emb", "reasoning": "reas", "bag-of-words": "BoW"}
    columns = [best for found in modes.values() if (best := reading.better_mode(found, listed)) is not None]
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
