"""The page, the figures and the terminal table of several studies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hrsa_jax.report import tables
from hrsa_jax.report.measures import MEASURES
from hrsa_jax.report.page import environment
from hrsa_jax.report.panels import Panel, panel_of
from hrsa_jax.report.phrases import bracketed, estimate_text, points
from hrsa_jax.report.studies import KEY_MEASURES, OWN_PROBE, WEAKENED, Studies, StudyRow, Summary
from hrsa_jax.report.svg import COLOURS, css_name, panel, shorten, to_svg
from hrsa_jax.report.verdict import UNSHOWN
from hrsa_jax.runtime.logging import counted

INK, MUTED = COLOURS["ink"], COLOURS["muted"]
DUMBBELLS = ("cka", "knn_10", "procrustes_residual", "probe_transfer")
Triple = tuple[float, float, float]


def render(studies: Studies, sources: Mapping[str, str], command: str) -> str:
    """The comparison as one HTML string."""
    text = (
        environment()
        .get_template("studies.html")
        .render(
            headline=headline(studies),
            lines=[sentence(row) for row in studies.rows],
            demonstration=studies.demonstration,
            warnings=studies.warnings,
            benchmark=_benchmark_table(studies.rows),
            forest=panel_of(
                "reasoning-Emb minus base-Emb, study by study",
                "Large dot and bar: mean difference and 90% interval of one study, before correction. Small dots: "
                "single seeds. Shaded: that study's margin.",
                _forest(studies.rows),
                "No study has a difference with its interval.",
            ),
            dumbbells=[_dumbbell_panel(studies, measure) for measure in DUMBBELLS],
            similarity=_similarity_table(studies),
            colours={css_name(name): value for name, value in COLOURS.items()},
            sources=[(row.name, f"{row.pair}: {sources[row.name]}") for row in studies.rows],
            command=command,
        )
    )
    return text.replace("+/-", "±")


def write(html: str, path: Path) -> None:
    """So that a reader sees the old page or the whole new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(html, encoding="utf-8", errors="replace")  # JSON can hold halves of characters
    partial.replace(path)


def short_word(word: str) -> str:
    """The verdict word without its brackets and caveats."""
    if word.startswith(WEAKENED):
        return "inconclusive"
    return word.split(" (")[0].split(";")[0]


def headline(studies: Studies) -> str:
    """Which studies have which verdict, each with its interval."""
    groups: dict[str, list[str]] = {}
    for row in studies.rows:
        interval = "" if math.isnan(row.low) else f" {_effect(row)}"
        groups.setdefault(short_word(row.corrected), []).append(row.name + interval)
    said = "; ".join(f"{word} in {', '.join(names)}" for word, names in groups.items())
    return f"{len(studies.rows)} studies side by side: {said} (points, 90% intervals)."


def _effect(row: StudyRow) -> str:
    return f"{points(row.estimate, row.margin)} {bracketed(row.low, row.high, row.margin)}"


def sentence(row: StudyRow) -> str:
    """One study's verdict with its interval, and what qualifies it."""
    if math.isnan(row.low):
        return f"{row.name}: not measured (no difference with an interval)."
    text = (
        f"{row.name}: {row.corrected}. reasoning-Emb minus base-Emb is {points(row.estimate, row.margin)} points, 90% "
        f"interval {points(row.low, row.margin)} to {points(row.high, row.margin)}, {counted(row.tasks, 'task')}, "
        f"{counted(len(row.seeds), 'seed')}, margin +/-{row.margin:g}; {_p_words(row)}."
    )
    if row.corrected != row.word:
        text += f' Alone, uncorrected, the study says "{row.word}".'
    return text + (f" Flagged: {'; '.join(row.flags)}." if row.flags else "")


def _p_words(row: StudyRow) -> str:
    return f"Holm p {p_text(row.p_holm)} for no difference, {p_text(row.equivalence_p_holm)} for one beyond the margin"


def p_text(p: float) -> str:
    if math.isnan(p):
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def terminal_table(studies: Studies, width: int = 80) -> str:
    """The comparison as a plain table within `width` columns."""
    names = [shorten_ascii(row.name, width - 64) for row in studies.rows]
    first = max(5, *(len(name) for name in names))
    lines = [f"{'study':{first}s}{'base-Emb':>9s}{'reas-Emb':>9s}  {'points [90%]':22s}{'Holm p':>7s}  verdict"]
    lines.append("-" * min(width, first + 64))
    for name, row in zip(names, studies.rows, strict=True):
        interval = _effect(row)
        scores = "".join(f"{'-' if math.isnan(s) else f'{100 * s:.1f}':>9s}" for s in (row.base_Emb, row.reasoning_Emb))
        word = short_word(row.corrected)
        mark = "*" if row.corrected.endswith(UNSHOWN) else ""
        p = row.equivalence_p_holm if word == "no advantage" else row.p_holm
        lines.append(f"{name:{first}s}{scores}  {interval:22s}{p_text(p):>7s}  {word}{mark}".rstrip())
    lines.append("Holm p: for no difference; for a difference beyond the margin where it says")
    lines.append("no advantage. Verdicts are Holm-corrected. * sensitivity not shown")
    return "\n".join(lines) + "\n"


def shorten_ascii(name: str, limit: int) -> str:
    return name if len(name) <= limit else name[: limit - 2] + ".."


def _benchmark_table(rows: Sequence[StudyRow]) -> tables.Table:
    columns = (
        tables.Column("study", "flags"),
        tables.Column("base-Emb", "mean score, points", "base-Emb"),
        tables.Column("reasoning-Emb", "mean score, points", "reasoning-Emb"),
        tables.Column("difference", "90% interval"),
        tables.Column("tasks x seeds", "margin"),
        tables.Column("Holm p", "no difference"),
        tables.Column("Holm p", "beyond the margin"),
        tables.Column("Holm p", "sign flips"),
        tables.Column("verdict", "after correction"),
    )
    return tables.Table(columns, tuple(_benchmark_row(row) for row in rows))


def _benchmark_row(row: StudyRow) -> tuple[tables.Cell, ...]:
    def score(value: float) -> tables.Cell:
        return tables.Cell("—") if math.isnan(value) else tables.Cell(f"{100 * value:.1f}", 100 * value)

    def p(value: float, raw: float) -> tables.Cell:
        return tables.Cell(p_text(value), None if math.isnan(value) else value, note=f"raw\u00a0{p_text(raw)}")

    word = row.corrected.split(" (")[0].split(";")[0]
    caveats = [text for text, yes in (("sensitivity not shown", row.corrected.endswith(UNSHOWN)),) if yes]
    if row.corrected != row.word:
        caveats.append(f"alone, uncorrected: {short_word(row.word)}")
    return (
        tables.Cell(row.name, note=", ".join(row.flags)),
        score(row.base_Emb),
        score(row.reasoning_Emb),
        tables.Cell(
            points(row.estimate, row.margin),
            row.estimate,
            note=bracketed(row.low, row.high, row.margin).replace(" ", "\u00a0"),
        ),
        tables.Cell(f"{row.tasks} x {len(row.seeds)}", row.tasks * len(row.seeds), note=f"+/-{row.margin:g}"),
        p(row.p_holm, row.p),
        p(row.equivalence_p_holm, row.equivalence_p),
        p(row.sign_flip_p_holm, row.sign_flip_p),
        tables.Cell(word, note="; ".join(caveats)),
    )


def _forest(rows: Sequence[StudyRow]) -> str | None:
    drawn = [row for row in rows if not math.isnan(row.low)]
    if not drawn:
        return None
    with panel(4.8, 1.0 + 0.42 * len(drawn)) as (figure, axes):
        for index, row in enumerate(reversed(drawn)):
            if not math.isnan(row.margin):
                axes.barh(index, 2 * row.margin, left=-row.margin, height=0.9, color=COLOURS["band"], zorder=0)
            axes.plot([row.low, row.high], [index, index], color=COLOURS["reasoning-Emb"], linewidth=5, alpha=0.45)
            axes.plot(row.seed_means, [index - 0.24] * len(row.seed_means), "o", color=MUTED, markersize=3.4)
            axes.plot([row.estimate], [index], "o", color=COLOURS["reasoning-Emb"], markersize=8)
            text = points(row.estimate, row.margin)
            axes.annotate(text, (row.estimate, index), (0, 6), textcoords="offset points", ha="center", fontsize=8.5)
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.set_yticks(range(len(drawn)), [shorten(row.name, 20) for row in reversed(drawn)])
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_ylim(-0.6, len(drawn) - 0.3)
        reach = 1.1 * max(
            max(abs(row.low), abs(row.high), 0 if math.isnan(row.margin) else row.margin) for row in drawn
        )
        axes.set_xlim(-reach, reach)
        axes.set_xlabel("reasoning-Emb minus base-Emb (points)")
        return to_svg(figure, "studies-forest")


def _dumbbell_panel(studies: Studies, measure: str) -> Panel:
    found = [summary for summary in studies.summaries if summary.measure == measure]
    layers = sorted({summary.layer for summary in found})
    where = f"At layer {', '.join(map(str, layers))}, the last." if layers else ""
    own = measure == "probe_transfer"
    text = " Tick: the reasoning model's own probe." if own else " Tick: two seeds of base-Emb (seed ceiling)."
    known = MEASURES[measure]
    meaning = known.reading.split("; the dotted")[0]  # chance is not drawn here
    caption = f"{where} {meaning[0].upper()}{meaning[1:]}.{text}"
    ticks = {
        summary.study: summary.embeddings if own else summary.ceiling
        for summary in studies.summaries
        if summary.measure == (OWN_PROBE if own else measure)
    }
    svg = _dumbbell(found, ticks, measure) if found else None
    return panel_of(known.label[0].upper() + known.label[1:], caption, svg, "Not measured by any of the studies.")


def _dumbbell(found: Sequence[Summary], ticks: Mapping[str, Triple], measure: str) -> str | None:
    with panel(4.4, 0.85 + 0.5 * len(found)) as (figure, axes):
        for index, summary in enumerate(reversed(found)):
            for side, offset in (("backbones", 0.14), ("embeddings", -0.14)):
                value, low, high = getattr(summary, side)
                marker: Any = "o" if side == "backbones" else "s"
                if not math.isnan(low):
                    axes.plot([low, high], [index + offset] * 2, color=COLOURS[side], linewidth=4, alpha=0.4)
                axes.plot([value], [index + offset], marker, color=COLOURS[side], markersize=6.5)
            tick = ticks.get(summary.study, (math.nan,) * 3)[0]
            axes.plot([tick], [index], "|", color=INK, markersize=20, markeredgewidth=1.8)
        axes.set_yticks(range(len(found)), [shorten(summary.study, 16) for summary in reversed(found)])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(-0.55, len(found) - 0.45)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(MEASURES[measure].short)
        axes.margins(x=0.08)
        return to_svg(figure, f"studies-{measure}")


def _two_digits(triple: Triple) -> str:
    value, low, high = triple
    return estimate_text(value, low, high, digits=2)


def _similarity_table(studies: Studies) -> tables.Table | None:
    measures = [m for m in (*KEY_MEASURES, OWN_PROBE) if any(s.measure == m for s in studies.summaries)]
    at = {(summary.study, summary.measure): summary for summary in studies.summaries}
    body = []
    for row in studies.rows:
        for side, what in (("backbones", "backbones"), ("embeddings", "embedding models"), ("ceiling", "seed ceiling")):
            values = [at.get((row.name, measure)) for measure in measures]
            if all(value is None for value in values):
                continue
            cells = ["—" if value is None else _two_digits(getattr(value, side)) for value in values]
            body.append((tables.Cell(row.name, note=what), *(tables.Cell(cell) for cell in cells)))
    columns = (tables.Column("study"), *(tables.Column(MEASURES[measure].short) for measure in measures))
    return tables.Table(columns, tuple(body)) if body else None
