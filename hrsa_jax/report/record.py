"""What stands on the page besides figures and tables: facts, hashes, what was refused and what was left out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from hrsa_jax.report import controls, reading
from hrsa_jax.report.measures import BACKBONES, CEILING, EMBEDDINGS, MEASURES, PAIR_LABELS, PAIRS, label
from hrsa_jax.report.tables import Cell, Column, Table


def refusals(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(pair, measure, why) of everything that a comparison declined to compute."""
    return [
        (PAIR_LABELS.get(pair, pair), label(str(measure)), str(why))
        for pair, parts in (results.get("hrsa") or {}).items()
        for measure, why in (parts.get("refused") or {}).items()
    ]


def methods(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(measure, how its interval was made), from either pair."""
    out: dict[str, str] = {}
    for pair in PAIRS:
        for measure in MEASURES:
            entry = reading.pair_curve(results, pair, measure)
            if entry is not None and entry.method:
                out.setdefault(label(measure), str(entry.method))
    return list(out.items())


def left_out(results: Mapping[str, Any]) -> list[str]:
    """What a careful study would hold and this one does not."""
    out = []
    null_effect, hrsa = results.get("null_effect") or {}, results.get("hrsa") or {}
    found = reading.differences(results)
    if found is None or len(found.seeds) < 3:
        out.append("At least three seeds: with fewer, noise between training runs is unknown or barely known.")
    if not null_effect.get("positive_control"):
        out.append("A positive control (a sibling known to be worse): not run, so sensitivity is not shown.")
    if not null_effect.get("aa"):
        out.append(
            "A/A runs (base against base with other seeds): not run, so the margin is not checked against noise."
        )
    if CEILING not in hrsa:
        out.append(
            "The seed ceiling (two embedding models of one backbone): not run, so no realignment index is given."
        )
    if not controls.floor_runs(results):
        out.append("The noise floor (a model against itself under other numerics): not run.")
    if not results.get("planted"):
        out.append("Planted truths (pairs whose answer is known, through the same code): not run.")
    if not results.get("trajectory"):
        out.append("Similarity along the conversion (snapshots): not recorded.")
    if found is not None and len(found.seeds) > 1 and EMBEDDINGS in hrsa:
        out.append(
            f"Layer measures of every seed: the embedding models were compared for seed {found.seeds[0]} only, so how "
            "much sections 3 and 4 owe to that seed is not known."
        )
    for pair in (BACKBONES, EMBEDDINGS):
        if pair not in hrsa:
            out.append(f"HRSA of the {PAIR_LABELS[pair]}: not in results.json.")
    sections = {
        "reasoning": "how the reasoning variant was made",
        "realignment": "the paired realignment gap",
        "training": "training curves",
        "timings": "time and memory per stage",
    }
    for name, what in sections.items():
        if not results.get(name):
            out.append(f"{what[0].upper()}{what[1:]}: not in results.json.")
    return out


def models(results: Mapping[str, Any]) -> Table | None:
    """Models down, what is recorded of each across."""
    found = results.get("models") or {}
    keys = list(dict.fromkeys(key for entry in found.values() for key in entry if key != "name"))
    body = [
        (Cell(str(name)), *(Cell("—" if entry.get(key) is None else flat(entry[key])) for key in keys))
        for name, entry in found.items()
    ]
    return Table((Column("model"), *(Column(key.replace("_", " ")) for key in keys)), tuple(body)) if body else None


def sample_text(results: Mapping[str, Any]) -> str:
    """How many texts and tokens HRSA compared, from either pair's facts."""
    for pair in PAIRS:
        facts_ = ((results.get("hrsa") or {}).get(pair) or {}).get("facts") or {}
        texts, rows, out = (reading.number(facts_.get(key)) for key in ("texts", "rows", "rows_left_out"))
        if texts == texts and rows == rows:
            left = f"; {out:.0f} more (attention sinks and other outliers) are left out" if out > 0 else ""
            return f"Compared on {rows:.0f} tokens of {texts:.0f} texts{left}."
    return ""


def questions_text(results: Mapping[str, Any]) -> str:
    """What the variant's accuracy was measured on, empty when it is not recorded."""
    made = results.get("reasoning") or {}
    return ", ".join(str(made[key]) for key in ("accuracy_family", "accuracy_setting") if made.get(key))


def provenance(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Facts of the run; of the pairing, whether both models saw equal data by an equal recipe."""
    found = dict(results.get("provenance") or {})
    pairing = found.pop("pairing", None)
    out = facts({key: value for key, value in found.items() if key not in ("command", "versions", "hashes")})
    if isinstance(pairing, Mapping):
        equal = {
            str(key): entry["equal"]
            for key, entry in pairing.items()
            if isinstance(entry, Mapping) and "equal" in entry
        }
        said = "; ".join(f"{name}: {'equal' if same else 'NOT EQUAL'}" for name, same in equal.items())
        out.append(("data order and recipe of both models", said or flat(pairing)))
    return out


def hashes(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Everything that identifies the run's inputs and models."""
    found = results.get("provenance") or {}
    pairing = {"pairing": found["pairing"]} if found.get("pairing") else {}
    return facts({**(found.get("hashes") or {}), **(results.get("fingerprints") or {}), **pairing})


def flat(value: Any) -> str:
    """A value of any JSON type on one line, for the fact tables."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def loss_change_text(results: Mapping[str, Any]) -> str:
    """The changes of the loss on held-out and on unseen solutions in words, empty when none was measured."""
    entries = (
        ("held-out solutions", (results.get("reasoning") or {}).get("loss_change")),
        ("solutions from templates never trained on", (results.get("reasoning") or {}).get("unseen_loss_change")),
    )
    out = []
    for what, entry in entries:
        change, low, high = reading.loss_change(entry)
        if not math.isnan(change):
            interval = "no interval" if math.isnan(low) else f"95% interval {100 * low:+.1f}% to {100 * high:+.1f}%"
            out.append(f"Loss on {what}, paired by problem: {100 * change:+.1f}% ({interval}).")
    return " ".join(out)


def variant_facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Whatever else the study recorded about the reasoning variant."""
    made = results.get("reasoning") or {}
    shown_elsewhere = (
        *("method", "label", "before", "after", "training", "loss_change", "unseen_loss_change", "accuracy", "n"),
        *("interval95", "solution_loss", "solution_loss_interval95"),
    )
    nested = {f"{name} {when}": v for when in ("before", "after") for name, v in (made.get(when) or {}).items()
              if name not in shown_elsewhere}  # fmt: skip
    return facts({**{name: value for name, value in made.items() if name not in shown_elsewhere}, **nested})


def facts(mapping: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """(name, value) of each entry; lists by layer are cut short, since nobody reads them here."""
    return [(str(key).replace("_", " "), _cut(flat(value))) for key, value in (mapping or {}).items()]


def _cut(text: str, limit: int = 800) -> str:
    return text if len(text) <= limit else f"{text[: limit // 4]} ... (whole in results.json)"
