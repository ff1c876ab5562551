"""The controls of a study: what the verdict and the similarities would say if the answer were known.

A positive control (an under-trained sibling that must score lower), random weights through the same recipe, the noise
floor of the base, planted truths, and how alike the two models are while both are being converted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from experiments.compare import HrsaConfig, study_texts
from experiments.convert import BackboneConfig, ConvertConfig, convert, named_backbone
from experiments.null_effect import CONTROL
from experiments.run import Model, Run
from experiments.training_data import TrainingData
from hrsa_jax.hrsa.activations import token_states
from hrsa_jax.hrsa.floors import model_noise_floor
from hrsa_jax.hrsa.planted_checks import check_planted
from hrsa_jax.hrsa.results import Curve, plain
from hrsa_jax.hrsa.series import compare_quickly
from hrsa_jax.hrsa.states import shared_row_mask
from hrsa_jax.hrsa.uncertainty import half_sample_interval, jackknife_interval
from hrsa_jax.runtime.config import to_json
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.workdir import fingerprint

RANDOM = "random-weights"
RANDOM_EMB = f"{RANDOM}-Emb"


@dataclass(frozen=True)
class ControlsConfig:
    """undertrained_steps: the base converted in so few steps, with every seed (0: no positive control).

    random_weights: the base's architecture with random weights, converted with the first seed. noise_floor: the base
    against itself in bfloat16, other batches and other padding. planted: pairs of known truth through the same code.
    """

    undertrained_steps: int = 0
    random_weights: bool = False
    noise_floor: bool = False
    planted: bool = False

    def __post_init__(self) -> None:
        if self.undertrained_steps < 0:
            raise InputError(f"config.controls.undertrained_steps={self.undertrained_steps}: give 0 or more")


def control_embs(
    base: Model, controls: ControlsConfig, config: ConvertConfig, data: TrainingData, run: Run
) -> tuple[list[Model], str | None]:
    """Embedding models of the controls, and what the positive one is in words (None without it)."""
    embs, what = [], None
    plain_config = replace(config, monitor=None, snapshots=())
    if controls.undertrained_steps:
        steps = controls.undertrained_steps
        few = replace(
            plain_config,
            recipe=replace(config.recipe, steps=steps, epochs=None),
            optim=replace(config.optim, warmup_steps=min(config.optim.warmup_steps, steps // 2)),
        )
        embs += [
            convert(replace(base, name=CONTROL.removesuffix("-Emb")), seed, few, data, run)[0] for seed in config.seeds
        ]
        what = f"the base converted in {steps} step{'s' if steps > 1 else ''} only"
    if controls.random_weights:
        source = BackboneConfig(base.source, reset=True, seed=config.seeds[0])
        backbone = named_backbone(RANDOM, source, run)
        embs.append(convert(backbone, config.seeds[0], plain_config, data, run)[0])
    return embs, what


def noise_floor(base: Model, controls: ControlsConfig, config: HrsaConfig, run: Run) -> dict[str, Any] | None:
    """results.json's `noise_floor`: the base against itself, run in ways that should not matter."""
    if not controls.noise_floor:
        return None
    texts = study_texts(config).tokens
    inputs = {"model": base.fingerprint, "texts": fingerprint(texts), "config": asdict(config)}
    with run.workdir.stage("noise_floor", inputs) as stage:
        if not stage.done:
            run.log.line(f"  noise floor: {base.name} against itself")
            found = model_noise_floor(run.load(base.source), texts, max_tokens=config.max_tokens, seed=config.seed)
            stage.complete({name: comparison.to_json() for name, comparison in found.items()})
    return {"model": base.name, "runs": stage.result}


def planted_truths(controls: ControlsConfig, run: Run) -> list[dict[str, Any]] | None:
    """results.json's `planted`: measures of pairs whose truth is known."""
    if not controls.planted:
        return None
    with run.workdir.stage("planted", {}) as stage:
        if not stage.done:
            stage.complete([asdict(check) for check in check_planted()])
    return stage.result


def trajectory(
    backbones: tuple[Model, Model],
    embs: tuple[Model, Model],
    last_step: int,
    convert: ConvertConfig,
    config: HrsaConfig,
    run: Run,
) -> dict[str, Any] | None:
    """results.json's `trajectory`: base against reasoning at every snapshot of their conversions; None without any.

    Step 0 are the backbones, `last_step` the embedding models, each in its own attention mode; one row mask serves all
    steps.
    """
    if not convert.snapshots:
        return None
    pairs = {0: tuple(model.source for model in backbones)}
    for step in sorted(convert.snapshots):
        pairs[step] = tuple(f"{emb.source.removesuffix('/model')}/snapshots/step{step}" for emb in embs)
    pairs[last_step] = tuple(emb.source for emb in embs)
    inputs = {
        "models": [model.fingerprint for model in (*backbones, *embs)],
        "snapshots": list(pairs),
        "texts": fingerprint(study_texts(config).tokens),
        "config": to_json(config),
    }
    with run.workdir.stage("trajectory", inputs) as stage:
        if not stage.done:
            run.log.line(f"  base against reasoning at steps {', '.join(map(str, pairs))}")
            stage.complete(_along(pairs, config, run))
    return stage.result


def _along(pairs: Mapping[int, tuple[str, ...]], config: HrsaConfig, run: Run) -> dict[str, Any]:
    texts = study_texts(config).tokens
    states = {
        source: token_states(run.load(source), texts, max_tokens=config.max_tokens)
        for sources in pairs.values()
        for source in sources
    }
    mask = shared_row_mask(*states.values())
    found = [compare_quickly(states[a], states[b], row_mask=mask, seed=config.seed) for a, b in pairs.values()]
    shared = [name for name in found[0].measures if all(name in comparison.measures for comparison in found)]
    measures = {name: _over_layers([comparison.measures[name] for comparison in found]) for name in shared}
    return {"steps": list(pairs), "measures": measures}


def _over_layers(curves: list[Curve]) -> dict[str, Any]:
    """Mean over layers at every step, with the interval over texts that its replicates give."""
    intervals: list[Any] = []
    for curve in curves:
        if curve.replicates is None:
            intervals.append(None)
            continue
        reach = half_sample_interval if curve.resampling == "half-samples" else jackknife_interval
        mean = np.nanmean(curve.value)[None]
        intervals.append(plain(reach(mean, np.nanmean(curve.replicates, axis=1)[:, None])[0]))
    return {"value": [float(np.nanmean(curve.value)) for curve in curves], "interval95": intervals}
