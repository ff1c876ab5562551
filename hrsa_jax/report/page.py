"""results.json to one self-contained HTML page: `render` is a pure function, `write` puts it beside the results."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from hrsa_jax.report import controls, figures, inside, panels, reading, record, schema, tables, verdict
from hrsa_jax.report.measures import CEILING, PAIR_LABELS, PAIR_SHORT
from hrsa_jax.report.svg import COLOURS, css_name
from hrsa_jax.report.words import WORDS, Definer
from hrsa_jax.runtime import processes
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import counted


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
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    definer = Definer()  # of this page: a word is explained where a section first uses it
    made.filters["defined"] = definer.filter()
    made.globals["section"] = definer.section
    made.globals["words"] = WORDS
    return made


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
        "who": _who(results),
        "label": str(results.get("label") or ("Demonstration" if results.get("demonstration") else "")),
        "colours": {css_name(name): value for name, value in COLOURS.items()},
        "answer": panels.answer_panel(results),
        "benchmark": tables.benchmark(results),
        "forest": panels.forest_panel(results),
        "types": tables.by_type(results),
        "probes": tables.probe_matrix(results),
        "levels": panels.levels(results),
        "realignment": tables.realignment(results),
        "slopes": panels.slope_panels(results),
        "trajectories": panels.trajectory_panels(results),
        "index": controls.realignment_rows(results),
        "controls": controls.rows(results),
        "controls_forest": panels.controls_panel(results),
        "planted": controls.planted(results),
        "floor_names": list(controls.floor_runs(results)),
        "floor_table": controls.floor_table(results),
        "gaps": panels.gap_panels(results),
        "reasoning": tables.reasoning(results),
        "ceiling": verdict.has_pair(results, CEILING),
        "variant_facts": record.variant_facts(results),
        "variant": {
            "questions": record.questions_text(results),
            "method": str((results.get("reasoning") or {}).get("method") or "not stated"),
            "label": verdict.variant_label(results),
            "loss_change": record.loss_change_text(results),
            "failed": results.get("reasoning") is not None and verdict.variant_failed(results),
        },
        "tuning": panels.tuning_panels(results),
        "sinks": tables.sinks(results),
        "refusals": record.refusals(results),
        "methods": record.methods(results),
        "notes": _notes(results),
        "sameness_note": inside.SAMENESS_NOTE,
        "left_out": record.left_out(results),
        "comparison_facts": _comparison_facts(results),
        "command": str(provenance.get("command") or ""),
        "reused": _reused(results),
        "provenance": record.provenance(results),
        "versions": record.facts(provenance.get("versions")),
        "hashes": record.hashes(results),
        "models": record.models(results),
        "sample": record.sample_text(results),
        "timings": _timing_rows(results),
        "times": panels.panel_of(
            "Time per stage",
            "Wall-clock seconds of each stage, in the order they ran; resumed stages show their own time only.",
            figures.stage_times(results),
            "No timings are recorded in results.json.",
        ),
        "config": json.dumps(results.get("config") or {}, indent=2, ensure_ascii=False, sort_keys=True),
    }


def _who(results: Mapping[str, Any]) -> str:
    """What the names on the page stand for, in one or two sentences; empty where results.json names no models."""
    models, tuned = results.get("models") or {}, results.get("reasoning") or {}
    base, reasoning = (models.get(name) or {} for name in ("base", "reasoning"))
    if not (base.get("source") and reasoning.get("source")):
        return ""
    size = f" ({base['parameters'] / 1e6:,.0f}M parameters)" if base.get("parameters") else ""
    how = {"sft": "fine-tuned on worked solutions of", "grpo": "tuned by reinforcement learning on"}.get(
        tuned.get("method", "")
    )
    origin = f"that model, {how} {tuned['family']}" if how and tuned.get("family") else reasoning["source"]
    text = f"base is {base['source']}{size}; reasoning is {origin}."
    if "base-Emb" in models:
        text += " base-Emb and reasoning-Emb are what one identical conversion into embedding models made of the two."
    return text


def _reused(results: Mapping[str, Any]) -> str:
    """The folders whose finished stages the study took over."""
    given = (results.get("config") or {}).get("reuse")
    return ", ".join(map(str, given)) if isinstance(given, list | tuple) else ""


def _caveats(results: Mapping[str, Any]) -> list[str]:
    """What must be known before the verdict word is repeated, in a few words each."""
    seeds = verdict.seed_count(results)
    out = [counted(seeds, "seed")] if seeds else []
    if verdict.UNSHOWN.strip("; ") in verdict.verdict_word(results)[0]:
        out.append(verdict.UNSHOWN.strip("; "))
    if ((results.get("null_effect") or {}).get("aa") or {}).get("holds") is False:
        apart = max((abs(pair.estimate) for pair in controls.aa(results)), default=math.nan)
        if not math.isnan(apart):
            out.append(f"two seeds of base-Emb up to {apart:.2f} points apart")
    if results.get("demonstration"):
        out.append("demonstration")
    if results.get("reasoning") is not None and verdict.variant_failed(results):
        out.append(f"reasoning variant: {verdict.variant_label(results)}")
    return out


def _notes(results: Mapping[str, Any]) -> list[str]:
    return [
        f"{PAIR_SHORT.get(pair, pair)}: {note}"
        for pair, parts in (results.get("hrsa") or {}).items()
        for note in parts.get("notes") or []
    ]


def _comparison_facts(results: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    return [
        (PAIR_LABELS.get(pair, pair), record.facts(parts.get("facts")))
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
