"""What is reported of a reasoning variant: solutions and questions before and after, in numbers and on a page."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.conversion_report import PAGE
from hrsa_jax.models.backbone import Backbone
from hrsa_jax.reasoning.accuracy import Accuracy, accuracy
from hrsa_jax.reasoning.rollout import divergence
from hrsa_jax.reasoning.sft import SolutionLoss, solution_loss
from hrsa_jax.reasoning.tasks import Problem, Style
from hrsa_jax.report import reading
from hrsa_jax.report.phrases import estimate_text
from hrsa_jax.report.svg import COLOURS, panel, to_svg
from hrsa_jax.report.verdict import variant_label
from hrsa_jax.runtime import processes


@dataclass(frozen=True)
class Measured:
    """accuracy on short questions; losses: on solutions by set of problems; kl: from the base, None for the base."""

    accuracy: Accuracy
    losses: dict[str, SolutionLoss]
    kl: float | None


def measure(
    model: Backbone,
    base: Backbone | None,
    tests: Mapping[str, Sequence[Problem]],
    *,
    solution_style: Style,
    style: Style,
    temperature: float,
    dtype: str,
    max_new_tokens: int,
) -> Measured:
    """tests: "questions" for the accuracy (and the KL from `base`), every other set for the loss on its solutions."""
    right = accuracy(
        model.decoder,
        model.tokenizer,
        tests["questions"],
        style=style,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        stop_ids=model.stop_token_ids,
        dtype=dtype,
    )
    losses = {
        name: solution_loss(model.decoder, model.tokenizer, problems, style=solution_style, dtype=dtype)
        for name, problems in tests.items()
        if name != "questions"
    }
    kl = None
    if base is not None:
        kl = divergence(
            model.decoder,
            base.decoder,
            model.tokenizer,
            tests["questions"],
            style=style,
            max_new_tokens=max_new_tokens,
            stop_ids=model.stop_token_ids,
            dtype=dtype,
        )
    return Measured(right, losses, kl)


def numbers(measured: Measured) -> dict[str, Any]:
    """One side of results.json's `reasoning` section."""
    right, loss = measured.accuracy, measured.losses["held_out"]
    found = {
        "accuracy": right.rate,
        "n": right.n,
        "interval95": list(right.wilson95),
        "mean_length": right.mean_length,
        "share_truncated": right.share_truncated,
        "share_well_formed": right.share_well_formed,
        "kl_from_base": measured.kl,
        "solution_loss": loss.mean,
        "solution_loss_interval95": list(loss.interval95),
        "held_out": len(loss.tokens_N),
    }
    if "unseen" in measured.losses:
        found["unseen_solution_loss"] = measured.losses["unseen"].mean
    return found


def change(before: Measured, after: Measured, name: str) -> dict[str, Any] | None:
    """Relative change of the loss on a set's solutions, paired by problem; None without that set."""
    if name not in before.losses:
        return None
    estimate, interval = after.losses[name].change(before.losses[name])
    return {"relative": estimate, "interval95": list(interval)}


def label(before: Measured, after: Measured) -> str:
    """What every table that uses the variant must say of it."""
    old, new = before.accuracy.wilson95, after.accuracy.wilson95
    if new[0] > old[1]:
        return "accuracy rose significantly (Wilson intervals disjoint)"
    if new[1] < old[0]:
        return "accuracy fell significantly (Wilson intervals disjoint)"
    return "accuracy did not rise significantly"


_ROWS = {
    "accuracy": "accuracy",
    "mean_length": "mean length (tokens)",
    "share_truncated": "share truncated",
    "share_well_formed": "share well-formed",
    "kl_from_base": "KL from the base (nats per token)",
    "solution_loss": "loss on held-out solutions (nats per token)",
    "unseen_solution_loss": "the same, unseen templates",
}
_PANELS = ("loss", "reward", "kl", "length", "surprisal", "mixed_groups")


def variant_text(results: Mapping[str, Any]) -> str:
    """What tuning changed, as lines for a terminal: accuracy and loss on held-out problems, before and after."""
    lines = []
    for when in ("before", "after"):
        found, said = reading.accuracy(results, when), []
        if found is not None and not math.isnan(found.rate):
            said.append(
                f"accuracy {100 * found.rate:5.1f}% [{100 * found.low:.1f}, {100 * found.high:.1f}] of {found.n:.0f}"
            )
        if found is not None and not math.isnan(found.loss):
            said.append(f"loss {estimate_text(found.loss, found.loss_low, found.loss_high)}")
        lines += [f"{when:8s}{', '.join(said)}"] if said else []
    return "\n".join([*lines, "held-out problems, 95% intervals; loss in nats a token", variant_label(results)])


def write_report(results: Mapping[str, Any], path: Path) -> None:
    """Writes one self-contained HTML file from the results of a tune experiment (process 0 does)."""
    if processes.index() != 0:
        return
    parts = [f"<p>{html.escape(results['label'])}</p>"] if results["label"] else []
    if "reasoning" in results:
        parts += [_table(results["reasoning"]), *_curves(results["reasoning"]["training"])]
    else:
        parts.append(f"<pre>{html.escape(json.dumps(results['traces'], indent=1))}</pre>")
    settings = json.dumps(results["config"], indent=1, ensure_ascii=False)
    parts.append(f"<details><summary>Settings</summary><pre>{html.escape(settings)}</pre></details>")
    parts.append(f"<p>Repeat it: <code>{html.escape(results['provenance']['command'])}</code></p>")
    light = " ".join(f"--c-{name.lower()}: {colour};" for name, colour in COLOURS.items())
    path.write_text(PAGE.format(title="Reasoning variant", light=light, body="\n".join(parts)), encoding="utf-8")


def _table(variant: Mapping[str, Any]) -> str:
    before, after = variant["before"], variant["after"]

    def cell(side: Mapping[str, Any], key: str) -> str:
        value = side.get(key)
        if value is None:
            return "<td class=n></td>"
        interval = side["interval95"] if key == "accuracy" else side.get(f"{key}_interval95")
        reach = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        return f"<td class=n>{value:.3f}{reach}</td>"

    rows = "".join(
        f"<tr><td>{text}</td>{cell(before, key)}{cell(after, key)}</tr>" for key, text in _ROWS.items() if key in after
    )
    head = "<tr><th>held-out<th class=n>before<th class=n>after</tr>"
    asked = f"{before['n']} questions of {variant['accuracy_family']}, {variant['accuracy_setting']}"
    changes = [
        f"{text}: {found['relative']:+.1%} [{found['interval95'][0]:+.1%}, {found['interval95'][1]:+.1%}]"
        for text, found in (
            ("held-out solution loss", variant["loss_change"]),
            ("unseen templates", variant["unseen_loss_change"]),
        )
        if found
    ]
    told = html.escape(f"{variant['method']} on {variant['family']}: {variant['label']}. {asked}. {'; '.join(changes)}")
    return f"<h2>Before and after</h2><p>{told}</p><table>{head}{rows}</table>"


def _curves(training: Mapping[str, Any]) -> list[str]:
    parts = []
    for name in _PANELS:
        if name in training:
            with panel(6.5, 2.4) as (figure, axes):
                axes.plot(training["step"], training[name], color=COLOURS["reasoning"])
                shown = "KL" if name == "kl" else name.replace("_", " ")
                axes.set(xlabel="step", ylabel=shown)
                parts.append(f"<h2>{shown[0].upper()}{shown[1:]}</h2>{to_svg(figure, f'tune-{name}')}")
    return parts
