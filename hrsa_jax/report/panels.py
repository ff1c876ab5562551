"""The panels of a study's page: each a figure with its caption, or the sentence that says why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from hrsa_jax.report import control_figures, controls, figures, hrsa_figures, reading, realignment_figures
from hrsa_jax.report.measures import CEILING, EMBEDDINGS, MEASURES, PAIR_LABELS, PAIR_SHORT, PAIRS
from hrsa_jax.report.svg import shorten


@dataclass(frozen=True)
class Panel:
    """One figure: its SVG, or the sentence that says why there is none."""

    title: str
    caption: str
    svg: Markup | None
    missing: str = ""


def panel_of(title: str, caption: str, svg: str | None, missing: str) -> Panel:
    return Panel(title, caption, None if svg is None else Markup(svg), missing)


def answer_panel(results: Mapping[str, Any]) -> Panel:
    return panel_of(
        "The difference and its 90% interval",
        "Dot: mean difference over tasks and seeds. Bar: 90% interval. Shaded: differences too small to matter "
        "(the margin). A bar inside the shade means no advantage; a bar on one side of 0, and not inside the shade, "
        "means a difference, provided there are several seeds.",
        figures.answer_strip(results),
        "results.json holds no estimate with an interval.",
    )


def forest_panel(results: Mapping[str, Any]) -> Panel:
    found = reading.differences(results)
    seeds = "" if found is None or len(found.seeds) < 2 else " Small dots: single seeds."
    hollow = "" if found is None or all(found.in_verdict) else " Hollow, *: tasks left out of the verdict."
    return panel_of(
        "reasoning-Emb minus base-Emb, task by task",
        "Each dot is one task, in points (score x 100); right of 0 reasoning-Emb scores higher." + seeds + hollow
        + " Diamond: the mean with its 90% interval. Shaded: the margin. Single tasks carry no interval.",
        figures.forest(results),
        "results.json holds no task that both embedding models were scored on.",
    )  # fmt: skip


def _why(results: Mapping[str, Any], measure: str, pairs: tuple[str, ...] = PAIRS) -> str:
    """Why a measure has no curve: refused by name, or simply absent."""
    reasons = {PAIR_SHORT[pair]: why for pair in pairs if (why := reading.refused(results, pair, measure))}
    undefined = {note for pair in pairs for note in reading.notes(results, pair) if note.startswith(f"{measure} ")}
    if len(reasons) > 1 and len(set(reasons.values())) == 1:
        return f"Refused for both pairs: {next(iter(reasons.values())).rstrip('.')}."
    if reasons:
        return "Refused for the " + "; ".join(f"{pair}: {why.rstrip('.')}" for pair, why in reasons.items()) + "."
    if undefined:
        said = "; ".join(sorted(undefined)).replace(measure, MEASURES[measure].short)
        return f"No value: {said}. More texts (config.hrsa.texts) would settle it."
    compared = [(results.get("hrsa") or {}).get(pair) for pair in pairs]
    if not any(compared):
        return "Not measured: results.json holds no comparison of these models."
    if measure.startswith("probe"):
        return "Not measured: probes need labelled texts (config.hrsa.labelled_texts; label_field in a comparison)."
    paper = any(((entry or {}).get("facts") or {}).get("preset") == "paper" for entry in compared)
    left_out = "config.hrsa.preset='paper' leaves it out" if paper else "this comparison left it out"
    return f"Not measured: {left_out}; config.hrsa.preset='careful' computes every measure."


def _curve_panel(results: Mapping[str, Any], measure: str) -> Panel:
    known = MEASURES[measure]
    gaps = []
    for pair in PAIRS:
        entry = reading.pair_curve(results, pair, measure)
        if entry is None:
            gaps.append(f"{PAIR_SHORT[pair]} not measured")
        else:
            if entry.missing_layers():
                gaps.append(f"no value for the {PAIR_SHORT[pair]} at {_layers(entry)}")
            if not (entry.low == entry.low).any():
                gaps.append(f"no interval for the {PAIR_SHORT[pair]}")
    if gaps and measure == "inverse_row_entropy":
        gaps.append("a layer is left out where the texts do not settle the rotation")
    reading_text = known.reading[0].upper() + known.reading[1:] + "."
    missing = f" Missing: {'; '.join(gaps)}." if gaps else ""
    svg = hrsa_figures.pair_curves(results, measure)
    title = known.label[0].upper() + known.label[1:]
    return panel_of(title, reading_text + missing, svg, _why(results, measure))


def _layers(entry: reading.Curve) -> str:
    """The layers without a value, or how many they are."""
    missing = entry.missing_layers()
    if len(missing) > 8:
        return f"{len(missing)} of {len(entry.layers)} layers"
    return f"layer {', '.join(map(str, missing))}"


_CKA_VARIANTS = {"cka": "debiased, sinks out", "cka_biased": "biased", "cka_with_sinks": "sinks kept"}


def levels(results: Mapping[str, Any]) -> list[dict[str, Any]]:
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
            "panels": [_curve_panel(results, "cka"), *variants, *neighbours, _by_k_panel(results)],
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
    name, form = "cka_matrix", "Debiased linear CKA"
    if reading.pair_matrix(results, pair, name) is None and reading.pair_matrix(results, pair, f"{name}_biased"):
        name, form = f"{name}_biased", "Linear CKA in its biased form, the only one that this comparison computed"
    return panel_of(
        f"Every layer against every layer: {PAIR_SHORT[pair]}",
        f"{form}, {PAIR_LABELS[pair]}; both heatmaps share the scale 0 to 1 (values below 0 are drawn as "
        "0). Bright on the diagonal: the same layer holds the same geometry in both. A bright block: neighbouring "
        "layers share theirs." + _diagonal(results, pair),
        hrsa_figures.heatmap(results, pair, name),
        _why(results, "cka_matrix", (pair,)),
    )


def _diagonal(results: Mapping[str, Any], pair: str) -> str:
    """The mean of the diagonal beside the seed ceiling and the noise floor, which a heatmap cannot draw."""
    found = (
        ("here", reading.pair_curve(results, pair, "cka")),
        ("between two seeds of base-Emb", reading.pair_curve(results, CEILING, "cka")),
        ("base against itself under other numerics", controls.floor_curve(results, "cka")),
    )
    said = [f"{entry.value[np.isfinite(entry.value)].mean():.3f} {what}" for what, entry in found if entry is not None]
    return f" Mean of the diagonal: {', '.join(said)}." if said else ""


def _lacks(results: Mapping[str, Any], measure: str) -> bool:
    return any(reading.pair_curve(results, pair, measure) is None for pair in PAIRS)


def _by_k_panel(results: Mapping[str, Any]) -> Panel:
    return panel_of(
        "Neighbour overlap by the number of neighbours",
        "Few neighbours ask about the closest surroundings, many about the wider ones. Bars: 95% intervals. "
        "Chance is what unrelated models share.",
        hrsa_figures.knn_by_k(results),
        " ".join(dict.fromkeys(_why(results, f"knn_{k}") for k in (5, 10, 50) if _lacks(results, f"knn_{k}"))),
    )


def _variant_panel(results: Mapping[str, Any], pair: str) -> Panel:
    return panel_of(
        f"CKA three ways: {PAIR_SHORT[pair]}",
        "Broad and coloured, with its 95% band: debiased, sinks out. Dashes: the biased form, as published. "
        "Dash-dot: attention sinks kept; where it differs, tokens with huge norms decide the number. Dots: the only "
        "layers a curve was measured at.",
        hrsa_figures.variant_curves(results, pair, _CKA_VARIANTS, f"cka3-{pair}"),
        _why(results, "cka", (pair,)),
    )


def _probe_panel(results: Mapping[str, Any], pair: str) -> Panel:
    has_ceiling = reading.pair_curve(results, CEILING, "probe_transfer") is not None
    return panel_of(
        f"Linear probes: {PAIR_SHORT[pair]}",
        "Share of held-out texts that a linear probe labels correctly, by layer. Transfer close to the probes' own "
        "accuracy: both models keep the labels in the same directions. Raw transfer below, rotated transfer close: "
        "the same information in another basis. Band: 95% interval of the transfer as is; where curves agree, the "
        "narrow ones lie on the broad ones."
        + (" Dotted: base-Emb's probe read on another seed of it." if pair == EMBEDDINGS and has_ceiling else ""),
        hrsa_figures.probes(results, pair),
        _why(results, "probe_transfer", (pair,)),
    )


def slope_panels(results: Mapping[str, Any]) -> list[Panel]:
    caption = (
        "First column: similarity of the two backbones. Second: of the two embedding models. Every measure is "
        "turned so that up is more alike. Thick: the 95% interval of the paired gap excludes 0. Thin: it does not. "
        "Dashed: no interval."
    )
    if CEILING in (results.get("hrsa") or {}):
        caption += " Diamonds: two seeds of one backbone, what conversion alone scatters; a pair may lie above them."
    if controls.floor_runs(results):
        caption += " Grey dashes at the left: base against itself under other numerics, where measured."
    layers = realignment_figures.slope_layers(results)
    if not layers:
        return [panel_of("From backbones to embedding models", caption, None,
                       "Not measured: no measure is present for both pairs.")]  # fmt: skip
    panels = []
    for layer in layers:
        where = f"layer {layer}" + (" (last)" if layer == layers[-1] else " (middle)")
        panels.append(panel_of(f"From backbones to embedding models, {where}", caption,
                             realignment_figures.slope(results, layer), ""))  # fmt: skip
    return panels


def trajectory_panels(results: Mapping[str, Any]) -> list[Panel]:
    panels = []
    for measure in ("correlation", "cka", "knn_10"):
        known = MEASURES[measure]
        svg = control_figures.trajectory(results, measure)
        if svg is not None:
            panels.append(
                panel_of(known.label[0].upper() + known.label[1:], known.reading.split("; the")[0] + ".", svg, "")
            )
    return panels


def controls_panel(results: Mapping[str, Any]) -> Panel:
    return panel_of(
        "Equal models, a worse model, and this study's difference",
        "Top: this study. Blue: base-Emb of one seed minus another, equal by design. Grey: a sibling meant to be "
        "worse. Bars: 90% intervals. Shaded: the margin. Equal models should stay inside the shade and the worse one "
        "outside.",
        control_figures.controls_forest(results),
        "Neither A/A runs nor a positive control were run, so nothing shows what this study could have seen.",
    )


def _why_no_gap(results: Mapping[str, Any], measure: str) -> str:
    """Why a measure has no gap: one pair lacks it, or the two were not compared on the same texts."""
    lacking = tuple(pair for pair in PAIRS if reading.pair_curve(results, pair, measure) is None)
    if not lacking:
        return "No gap: both pairs have the measure, but a gap needs both compared on the same texts and layers."
    return f"No gap, for want of the {' and the '.join(PAIR_SHORT[pair] for pair in lacking)}. " + _why(
        results, measure, lacking
    )


def gap_panels(results: Mapping[str, Any]) -> list[Panel]:
    panels, ceiling = [], CEILING in (results.get("hrsa") or {})
    for measure in ("correlation", "procrustes_residual", "cka", "knn_10"):
        known = MEASURES[measure]
        panels.append(
            panel_of(
                f"Gap by layer: {known.short}",
                f"{known.label[0].upper()}{known.label[1:]}, embedding pair minus backbone pair, paired by text, "
                "with its 95% band (each layer on its own). A band away from 0: conversion changed how alike they are."
                + (" Dotted: where the gap would be if they were as alike as two seeds." if ceiling else ""),
                realignment_figures.gap_curves(results, measure),
                _why_no_gap(results, measure),
            )
        )
    return panels


def tuning_panels(results: Mapping[str, Any]) -> list[Panel]:
    rewarded = (results.get("reasoning") or {}).get("method") == "grpo"
    return [
        panel_of(
            "Held-out accuracy before and after",
            "Share of held-out questions answered correctly; bars are 95% Wilson intervals. Overlapping bars do not "
            "show a rise.",
            figures.accuracy_panel(results),
            "Accuracy before and after was not measured.",
        ),
        panel_of(
            "Making the reasoning variant",
            "Policy loss by optimiser step: advantages times ratios of probabilities. It hovers about 0 by design; "
            "what was learnt is seen in the reward."
            if rewarded
            else "Training loss (nats a token) by optimiser step. It says that the model learnt the training text, not "
            "that it reasons better.",
            figures.training_curves(
                results, ("reasoning",), "train-reasoning", "policy loss" if rewarded else "loss (nats a token)"
            ),
            "No training curve of the reasoning variant is recorded.",
        ),
        *_reward_panels(results),
        panel_of(
            "Converting both backbones",
            "Contrastive loss (nats a query) by optimiser step, same data order for both. "
            + _ups_and_downs(results)
            + "Curves on top of each other: the two were trained alike. Of several seeds: their mean, single ones "
            "faint.",
            figures.training_curves(results, ("base-Emb", "reasoning-Emb"), "train-emb", "contrastive loss (nats)"),
            "No training curves of the conversions are recorded.",
        ),
    ]


def _ups_and_downs(results: Mapping[str, Any]) -> str:
    """Why the loss of a conversion is no smooth curve, as far as its training data are on record."""
    found = [entry["data"] for entry in (results.get("training") or {}).values() if entry.get("data")]
    names = list(found[0].get("datasets") or {}) if found else []
    if len(names) < 2:
        return "Ups and downs: batches differ. "
    most = "Most batches are" if any(data.get("mixed_batches") for data in found) else "Every batch is"
    return (
        f"{most} of one of {len(names)} data sets ({shorten(', '.join(names), 80)}), and some are harder: part of the "
        "ups and downs is which one had its turn, the rest the scatter of batches. "
    )


def _reward_panels(results: Mapping[str, Any]) -> list[Panel]:
    """Reward and drift from the base, of a variant made by reinforcement learning."""
    texts = {
        "reward": ("Reward", "Mean reward of the sampled answers, by optimiser step."),
        "kl": ("Drift from the base (KL)", "Divergence from the base model, nats a token, by optimiser step."),
    }
    made = (results.get("reasoning") or {}).get("training") or {}
    found = {key: control_figures.variant_training(made, key) for key in texts}
    return [panel_of(*texts[key], svg, "") for key, svg in found.items() if svg is not None]
