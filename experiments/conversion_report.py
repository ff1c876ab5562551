"""The page of a conversion: scores while training against the untrained backbone, losses, data, settings."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hrsa_jax.report.svg import COLOURS, panel, to_svg
from hrsa_jax.runtime import processes

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ --c-ink: #e6e9ed; --c-muted: #aab3bf; --c-grid: #39414b; }}
body {{ background: #14181d; }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--c-ink); max-width: 60rem; margin: 2rem auto;
padding: 0 1rem; }}
svg {{ max-width: 40rem; width: 100%; height: auto; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .2rem .8rem .2rem 0; text-align: left; }}
td.n, th.n {{ text-align: right; font-variant-numeric: tabular-nums; }}
pre {{ overflow-x: auto; font-size: 13px; }}
</style></head><body><h1>{title}</h1>{body}</body></html>
"""


def write_report(results: Mapping[str, Any], path: Path) -> None:
    """Writes one self-contained HTML file from a conversion's results (process 0 does)."""
    if processes.index() != 0:
        return
    parts = [f"<p>{html.escape(results['label'])}</p>"] if results["label"] else []
    parts += [_gain_table(results), *_figures(results), _data(results)]
    settings = json.dumps(results["config"], indent=1, ensure_ascii=False)
    parts.append(f"<details><summary>Settings</summary><pre>{html.escape(settings)}</pre></details>")
    parts.append(f"<p>Repeat it: <code>{html.escape(results['provenance']['command'])}</code></p>")
    light = " ".join(f"--c-{name.lower()}: {colour};" for name, colour in COLOURS.items())
    page = PAGE.format(title="Conversion into an embedding model", light=light, body="\n".join(parts))
    path.write_text(page, encoding="utf-8")


def gains(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Embedding model -> mean score before (the untrained backbone's better attention mode), at the end, best."""
    found = {}
    for key, training in results["training"].items():
        modes = results["untrained"].get(results["models"][key]["name"].removesuffix("-Emb")) or {}
        if modes and training["evaluation"]:
            means = [row["mean"] for row in training["evaluation"]]
            before = max(scores["mean"] for scores in modes.values())
            found[key] = {"untrained": before, "last": means[-1], "best": max(means), "rise": means[-1] - before}
    return found


def terminal_table(results: Mapping[str, Any]) -> str:
    """The scores as lines for a terminal, in points; a sentence where the models were not scored."""
    found = gains(results)
    if not found:
        return "The models were not scored while they trained (no monitor in the settings)."
    width = max(map(len, [*found, "model"]))
    lines = [f"{'model'.ljust(width)}{'untrained':>11s}{'after':>8s}{'rise':>8s}{'best':>8s}", "-" * (width + 35)]
    for key, gain in found.items():
        before, last, rise, best = (100 * gain[name] for name in ("untrained", "last", "rise", "best"))
        lines.append(f"{key.ljust(width)}{before:>11.1f}{last:>8.1f}{rise:>+8.1f}{best:>8.1f}")
    return "\n".join([*lines, "points; untrained: the better of the backbone's two attention modes"])


def _gain_table(results: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(key)}</td><td class=n>{gain['untrained']:.4f}</td><td class=n>{gain['last']:.4f}</td>"
        f"<td class=n>{gain['rise']:+.4f}</td><td class=n>{gain['best']:.4f}</td></tr>"
        for key, gain in gains(results).items()
    )
    if not rows:
        return "<p>The models were not scored while they trained (no monitor in the settings).</p>"
    head = "<tr><th>model<th class=n>untrained<th class=n>after<th class=n>rise<th class=n>best</tr>"
    note = "Mean of the tasks' main metrics; untrained: the better of the backbone's two attention modes."
    return f"<h2>Scores</h2><table>{head}{rows}</table><p>{note}</p>"


def _figures(results: Mapping[str, Any]) -> list[str]:
    parts = []
    scored = {key: run["evaluation"] for key, run in results["training"].items() if run["evaluation"]}
    if scored:
        with panel(6.5, 3.2) as (figure, axes):
            for key, curve in scored.items():
                _line(axes, results, key, [row["step"] for row in curve], [row["mean"] for row in curve], marker="o")
            for name, modes in results["untrained"].items():
                for attention, style in (("causal", ":"), ("bidirectional", "--")):
                    if attention in modes:
                        label = f"{name} untrained, {attention}"
                        axes.axhline(modes[attention]["mean"], color=COLOURS[name], linestyle=style, label=label)
            axes.set(xlabel="optimiser step", ylabel="mean score")
            axes.legend()
            parts.append(f"<h2>Scores while training</h2>{to_svg(figure, 'scores')}")
    with panel(6.5, 2.8) as (figure, axes):
        for key, run in results["training"].items():
            _line(axes, results, key, run["steps"], run["loss"])
        axes.set(xlabel="optimiser step", ylabel="loss")
        axes.legend()
        parts.append(f"<h2>Loss</h2>{to_svg(figure, 'loss')}")
    return parts


def _line(
    axes: Any, results: Mapping[str, Any], key: str, x: Sequence[float], y: Sequence[float], **style: Any
) -> None:
    """One colour a model; seeds differ in their line."""
    seeds = sorted({model["seed"] for model in results["models"].values()})
    model = results["models"][key]
    line = ("-", "--", "-.", ":")[seeds.index(model["seed"]) % 4]
    axes.plot(x, y, line, color=COLOURS[model["name"]], label=key, markersize=4, **style)


def _data(results: Mapping[str, Any]) -> str:
    stats = next(iter(results["training"].values()))["stats"]
    overlap = results["data"]["overlap"]
    tokens = [f"{stats['tokens'][role]['mean']:.0f}" for role in ("query", "passage")]
    rows = {
        "rows": ", ".join(f"{name} {count}" for name, count in stats["datasets"].items()),
        "rows without negatives": stats["pairs_without_negatives"],
        "repeated rows": stats["duplicate_pairs"],
        "mean tokens (query, passage)": ", ".join(tokens),
        "share truncated (query, passage)": ", ".join(f"{share:.1%}" for share in stats["share_truncated"].values()),
        "padding": f"{stats['padding_share']:.1%} ({stats['layout']} rows)",
        "purity of full batches": f"{stats['purity']:.4f}, {stats['mixed_batches']} batches of left-overs",
        "texts that are also evaluated": f"{overlap['found']} of {overlap['compared']} compared",
    }
    cells = "".join(f"<tr><td>{name}</td><td>{html.escape(str(value))}</td></tr>" for name, value in rows.items())
    return f"<h2>Data</h2><table>{cells}</table>"
