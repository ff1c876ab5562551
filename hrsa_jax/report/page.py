"""results.json to one self-contained HTML page: `render` is a pure function, `write` puts it beside the results."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from hrsa_jax.report import control_figures, controls, figures, hrsa_figures, reading, schema, tables, verdict
from hrsa_jax.report.measures import CEILING, MEASURES, PAIR_LABELS, PAIR_SHORT, PAIRS
from hrsa_jax.report.svg import COLOURS, css_name
from hrsa_jax.runtime import processes
from hrsa_jax.runtime.errors import InputError


@dataclass(frozen=True)
class Panel:
    """One figure: its SVG, or the sentence that says why there is none."""

    title: str
    caption: str
    svg: Markup | None
    missing: str = ""


def render(results: Mapping[str, Any]) -> str:
    """The report as one HTML string; a pure function of the results.

    Args:
      results: results.json, schema 1.

    Raises:
      InputError: the results are broken or foreign.
    """
    schema.validate(results)
    text = environment().get_template("template.html").render(**_context(results))
    return text.replace("+/-", "±")


def environment() -> jinja2.Environment:
    """Where the pages' templates are and how they are filled: everything escaped, nothing undefined."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write(results_path: str | Path, html_path: str | Path) -> Path:
    """Read a results.json (or the workdir that holds it) and write the page; returns the page's path."""
    page = Path(html_path)
    if processes.index() != 0:  # of several, process 0 writes
        return page
    results = schema.read(results_path)
    try:
        text = render(results)
    except InputError:
        raise
    except Exception as error:  # the schema knows what studies write, not everything a stranger's file may hold
        raise InputError(
            f"{results_path} has a part that the page cannot show ({type(error).__name__}: {error}): "
            "rebuild the file by running the study again"
        ) from error
    page.parent.mkdir(parents=True, exist_ok=True)
    partial = page.with_name(page.name + ".partial")
    partial.write_bytes(text.encode("utf-8", "replace"))  # JSON can hold halves of characters
    partial.replace(page)
    return page


def _context(results: Mapping[str, Any]) -> dict[str, Any]:
    summary = verdict.summary(results)
    provenance = results.get("provenance") or {}
    return {
        "summary": summary,
        "badge": summary.word.split(" (")[0].split(";")[0],
        "caveats": _caveats(results),
        "label": str(results.get("label") or ("Demonstration" if results.get("demonstration") else "")),
        "colours": {css_name(name): value for name, value in COLOURS.items()},
        "answer": _answer_panel(results),
        "benchmark": tables.benchmark(results),
        "forest": _forest_panel(results),
        "levels": _levels(results),
        "realignment": tables.realignment(results),
        "slopes": _slope_panels(results),
        "trajectories": _trajectory_panels(results),
        "index": controls.realignment_rows(results),
        "controls": controls.rows(results),
        "controls_forest": _controls_panel(results),
        "planted": controls.planted(results),
        "floor_names": list(controls.floor_runs(results)),
        "floor_table": controls.floor_table(results),
        "gaps": _gap_panels(results),
        "reasoning": tables.reasoning(results),
        "ceiling": verdict.has_pair(results, CEILING),
        "variant_facts": tables.variant_facts(results),
        "variant": {
            "method": str((results.get("reasoning") or {}).get("method") or "not stated"),
            "label": verdict.variant_label(results),
            "loss_change": tables.loss_change_text(results),
            "failed": results.get("reasoning") is not None and verdict.variant_failed(results),
        },
        "tuning": _tuning_panels(results),
        "sinks": tables.sinks(results),
        "refusals": tables.refusals(results),
        "methods": tables.methods(results),
        "notes": _notes(results),
        "sameness_note": verdict.SAMENESS_NOTE,
        "left_out": tables.left_out(results),
        "comparison_facts": _comparison_facts(results),
        "command": str(provenance.get("command") or ""),
        "provenance": tables.facts({k: v for k, v in provenance.items() if k not in ("command", "versions", "hashes")}),
        "versions": tables.facts(provenance.get("versions")),
        "hashes": tables.facts({**(provenance.get("hashes") or {}), **(results.get("fingerprints") or {})}),
        "models": [(name, tables.facts(entry)) for name, entry in (results.get("models") or {}).items()],
        "timings": _timing_rows(results),
        "times": _panel(
            "Time per stage",
            "Wall-clock seconds of each stage, in the order they ran; resumed stages show their own time only.",
            figures.stage_times(results),
            "No timings are recorded in results.json.",
        ),
        "config": json.dumps(results.get("config") or {}, indent=2, ensure_ascii=False, sort_keys=True),
    }


def _caveats(results: Mapping[str, Any]) -> list[str]:
    """What must be known before the verdict word is repeated, in a few words each."""
    seeds = verdict.seed_count(results)
    out = [verdict.counted(seeds, "seed")] if seeds else []
    if verdict.UNSHOWN.strip("; ") in verdict.verdict_word(results)[0]:
        out.append(verdict.UNSHOWN.strip("; "))
    if results.get("demonstration"):
        out.append("demonstration")
    if results.get("reasoning") is not None and verdict.variant_failed(results):
        out.append(f"reasoning variant: {verdict.variant_label(results)}")
    return out


def _panel(title: str, caption: str, svg: str | None, missing: str) -> Panel:
    return Panel(title, caption, None if svg is None else Markup(svg), missing)


def _answer_panel(results: Mapping[str, Any]) -> Panel:
    return _panel(
        "The difference and its 90% interval",
        "Dot: mean difference over tasks and seeds. Bar: 90% interval. Shaded: differences too small to matter "
        "(the margin). A bar inside the shade means no advantage; a bar on one side of 0, and not inside the shade, "
        "means a difference, provided there are several seeds.",
        figures.answer_strip(results),
        "results.json holds no estimate with an interval.",
    )


def _forest_panel(results: Mapping[str, Any]) -> Panel:
    found = reading.differences(results)
    seeds = "" if found is None or len(found.seeds) < 2 else " Small dots: single seeds."
    hollow = "" if found is None or all(found.in_verdict) else " Hollow, *: tasks left out of the verdict."
    return _panel(
        "reasoning-Emb minus base-Emb, task by task",
        "Each dot is one task, in points (score x 100); right of 0 reasoning-Emb scores higher." + seeds + hollow
        + " Diamond: the mean with its 90% interval. Shaded: the margin. Single tasks carry no interval.",
        figures.forest(results),
        "results.json holds no task that both embedding models were scored on.",
    )  # fmt: skip


def _why(results: Mapping[str, Any], measure: str, pairs: tuple[str, ...] = PAIRS) -> str:
    """Why a measure has no curve: refused by name, or simply absent."""
    reasons = {PAIR_SHORT[pair]: why for pair in pairs if (why := reading.refused(results, pair, measure))}
    if len(reasons) > 1 and len(set(reasons.values())) == 1:
        return f"Refused for both pairs: {next(iter(reasons.values())).rstrip('.')}."
    if reasons:
        return "Refused for the " + "; ".join(f"{pair}: {why.rstrip('.')}" for pair, why in reasons.items()) + "."
    return "Not measured: results.json holds no value of it."


def _curve_panel(results: Mapping[str, Any], measure: str) -> Panel:
    known = MEASURES[measure]
    gaps = []
    for pair in PAIRS:
        entry = reading.pair_curve(results, pair, measure)
        if entry is None:
            gaps.append(f"{PAIR_SHORT[pair]} not measured")
        else:
            if entry.missing_layers():
                layers = ", ".join(map(str, entry.missing_layers()[:8]))
                gaps.append(f"no value for the {PAIR_SHORT[pair]} at layer {layers}")
            if not (entry.low == entry.low).any():
                gaps.append(f"no interval for the {PAIR_SHORT[pair]}")
    reading_text = known.reading[0].upper() + known.reading[1:] + "."
    missing = f" Missing: {'; '.join(gaps)}." if gaps else ""
    svg = hrsa_figures.pair_curves(results, measure)
    title = known.label[0].upper() + known.label[1:]
    return _panel(title, reading_text + missing, svg, _why(results, measure))


_CKA_VARIANTS = {"cka": "debiased, sinks out", "cka_biased": "biased", "cka_with_sinks": "sinks kept"}


def _levels(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The three levels of HRSA, each with its panels."""
    variants = [_variant_panel(results, pair) for pair in PAIRS]
    neighbours = [_curve_panel(results, f"knn_{k}") for k in (5, 10, 50)]
    representation = ("correlation", "procrustes_residual", "inverse_row_entropy")
    return [
        {
            "title": "Geometry: do the two models place texts alike?",
            "lead": "Linear CKA compares the global shape of the two clouds of token vectors; k-nearest-neighbour "
            "overlap compares who stands next to whom.",
            "wide": [_heatmap_panel(results, pair) for pair in PAIRS],
            "panels": [_curve_panel(results, "cka"), *variants, *neighbours],
        },
        {
            "title": "Representation: do single coordinates mean the same?",
            "lead": "Correlation asks this coordinate by coordinate; Procrustes first allows any rotation, fitted on "
            "one half of the texts and scored on the other.",
            "wide": [],
            "panels": [_curve_panel(results, name) for name in representation],
        },
        {
            "title": "Function: can one model's readout be used on the other?",
            "lead": "A linear probe is fitted on base and applied to reasoning, as it is and after the rotation.",
            "wide": [_probe_panel(results, pair) for pair in PAIRS],
            "panels": [],
        },
    ]


def _heatmap_panel(results: Mapping[str, Any], pair: str) -> Panel:
    return _panel(
        f"Every layer against every layer: {PAIR_SHORT[pair]}",
        f"Debiased linear CKA, {PAIR_LABELS[pair]}; both heatmaps share the scale 0 to 1 (values below 0 are drawn as "
        "0). Bright on the diagonal: the same layer does the same job in both. A bright block: neighbouring layers "
        "share their geometry.",
        hrsa_figures.heatmap(results, pair),
        _why(results, "cka_matrix", (pair,)),
    )


def _variant_panel(results: Mapping[str, Any], pair: str) -> Panel:
    return _panel(
        f"CKA three ways: {PAIR_SHORT[pair]}",
        "Coloured, with its 95% band: debiased, sinks out. Dashed: the biased form, as published. Dotted: attention "
        "sinks kept; where it differs, a few huge tokens decide the number.",
        hrsa_figures.variant_curves(results, pair, _CKA_VARIANTS, f"cka3-{pair}"),
        _why(results, "cka", (pair,)),
    )


def _probe_panel(results: Mapping[str, Any], pair: str) -> Panel:
    return _panel(
        f"Linear probes: {PAIR_SHORT[pair]}",
        "Share of held-out texts that a linear probe labels correctly, by layer. Transfer close to the probes' own "
        "accuracy: both models keep the labels in the same directions. Raw transfer below, rotated transfer close: "
        "the same information in another basis.",
        hrsa_figures.probes(results, pair),
        _why(results, "probe_transfer", (pair,)),
    )


def _slope_panels(results: Mapping[str, Any]) -> list[Panel]:
    caption = (
        "Left: similarity of the two backbones. Right: similarity of the two embedding models. Every measure is "
        "turned so that up is more alike. Thick: the 95% interval of the paired gap excludes 0. Thin: it does not. "
        "Dotted: no interval."
    )
    layers = hrsa_figures.slope_layers(results)
    if not layers:
        return [_panel("From backbones to embedding models", caption, None,
                       "Not measured: no measure is present for both pairs.")]  # fmt: skip
    panels = []
    for layer in layers:
        where = f"layer {layer}" + (" (last)" if layer == layers[-1] else " (middle)")
        panels.append(_panel(f"From backbones to embedding models, {where}", caption,
                             hrsa_figures.slope(results, layer), ""))  # fmt: skip
    return panels


def _trajectory_panels(results: Mapping[str, Any]) -> list[Panel]:
    panels = []
    for measure in (results.get("trajectory") or {}).get("measures") or {}:
        known = MEASURES.get(measure)
        svg = control_figures.trajectory(results, measure)
        if known is not None and svg is not None:
            panels.append(
                _panel(known.label[0].upper() + known.label[1:], known.reading.split("; the")[0] + ".", svg, "")
            )
    return panels


def _controls_panel(results: Mapping[str, Any]) -> Panel:
    return _panel(
        "Equal models, a worse model, and this study's difference",
        "Top: this study. Blue: base-Emb of one seed minus another, equal by design. Grey: a sibling known to be "
        "worse. Bars: 90% intervals. Shaded: the margin. Equal models should stay inside the shade and the worse one "
        "outside.",
        control_figures.controls_forest(results),
        "Neither A/A runs nor a positive control were run, so nothing shows what this study could have seen.",
    )


def _gap_panels(results: Mapping[str, Any]) -> list[Panel]:
    panels = []
    for measure in ("correlation", "procrustes_residual", "cka", "knn_10"):
        known = MEASURES[measure]
        panels.append(
            _panel(
                f"Gap by layer: {known.short}",
                f"{known.label[0].upper()}{known.label[1:]}, embedding pair minus backbone pair, paired by text, "
                "with its 95% band (each layer on its own). A band away from 0: conversion changed how alike they are.",
                hrsa_figures.gap_curves(results, measure),
                "Not measured: results.json holds no paired gap for it.",
            )
        )
    return panels


def _tuning_panels(results: Mapping[str, Any]) -> list[Panel]:
    return [
        _panel(
            "Held-out accuracy before and after",
            "Share of held-out questions answered correctly; bars are 95% Wilson intervals. Overlapping bars do not "
            "show a rise.",
            figures.accuracy_panel(results),
            "Accuracy before and after was not measured.",
        ),
        _panel(
            "Making the reasoning variant",
            "Training loss (nats a token) by optimiser step. It says that the model learnt the training text, not "
            "that it reasons better.",
            figures.training_curves(results, ("reasoning",), "train-reasoning", "loss (nats a token)"),
            "No training curve of the reasoning variant is recorded.",
        ),
        _panel(
            "Converting both backbones",
            "Contrastive loss (nats a query) by optimiser step, same data order for both. Curves on top of each "
            "other: the two were trained alike.",
            figures.training_curves(results, ("base-Emb", "reasoning-Emb"), "train-emb", "contrastive loss (nats)"),
            "No training curves of the conversions are recorded.",
        ),
    ]


def _notes(results: Mapping[str, Any]) -> list[str]:
    return [
        f"{PAIR_SHORT.get(pair, pair)}: {note}"
        for pair, parts in (results.get("hrsa") or {}).items()
        for note in parts.get("notes") or []
    ]


def _comparison_facts(results: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    return [
        (PAIR_LABELS.get(pair, pair), tables.facts(parts.get("facts")))
        for pair, parts in (results.get("hrsa") or {}).items()
        if parts.get("facts")
    ]


def _timing_rows(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for stage, entry in (results.get("timings") or {}).items():
        seconds, peak = reading.number(entry.get("seconds")), reading.number(entry.get("peak_mb"))
        rows.append((stage, "-" if seconds != seconds else f"{seconds:.1f}", "-" if peak != peak else f"{peak:,.0f}"))
    return rows


def main(arguments: list[str]) -> int:
    """`python -m hrsa_jax.report.page RESULTS_OR_WORKDIR [HTML]`: rebuild a report; returns the exit status."""
    if not 1 <= len(arguments) <= 2:
        print(
            "error: give a results.json (or the workdir that holds it) and, if you like, the page's path",
            file=sys.stderr,
        )
        return 2
    source = Path(arguments[0])
    beside = (source if source.is_dir() else source.parent) / "report.html"
    try:
        print(write(source, arguments[1] if len(arguments) > 1 else beside))
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
