"""The whole study of one pair: reasoning variant, conversion, benchmark, HRSA, verdict, report.

Reads top to bottom. Every stage is done once (runtime/workdir.py); the same command continues a run that was cut off.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from experiments.announce import closing, opening
from experiments.compare import BACKBONES, CEILING, EMBEDDINGS, HrsaConfig, compare_pairs
from experiments.controls import (
    RANDOM,
    RANDOM_EMB,
    ControlsConfig,
    control_embs,
    noise_floor,
    planted_truths,
    trajectory,
)
from experiments.convert import ConvertConfig, convert_all, training_data
from experiments.evaluate import BenchmarkConfig, benchmark, study_suite, tuned_tasks
from experiments.null_effect import CONTROL, null_effect
from experiments.run import MeshConfig, Model, Run, device_mesh
from experiments.training_data import TrainingData
from experiments.tune import TuneConfig, tune
from hrsa_jax.evaluation.offline_tasks import task_texts
from hrsa_jax.models.source import check_sources
from hrsa_jax.report import page
from hrsa_jax.report.verdict import summary, terminal_table
from hrsa_jax.runtime.config import build, to_json
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import RunLog
from hrsa_jax.runtime.workdir import Workdir, write_json


@dataclass(frozen=True)
class StudyConfig:
    """base: model source. reasoning: another source, or None to make it from the base by `tune`.

    checkpoints: gs:// address for those of training, instead of the workdir.
    reuse: finished workdirs; stages with the same inputs (the conversions of the same base, say) are taken from them.
    """

    base: str
    convert: ConvertConfig
    benchmark: BenchmarkConfig
    hrsa: HrsaConfig
    reasoning: str | None = None
    tune: TuneConfig | None = None
    controls: ControlsConfig = field(default_factory=ControlsConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoints: str = ""
    reuse: tuple[str, ...] = ()
    label: str = ""
    demonstration: bool = False

    def __post_init__(self) -> None:
        if (self.reasoning is None) == (self.tune is None):
            raise InputError(
                "config: give either config.reasoning (an existing model) or config.tune (how to make it from the base)"
            )
        if self.convert.recipe.steps is not None:
            self.convert.optim.learning_rate_at(self.convert.recipe.steps)  # said before the variant is tuned


def run(config: dict[str, Any], path: str, *, command: str) -> int:
    """Runs or continues the study in the folder `path`; returns the exit status."""
    study = build(StudyConfig, config)
    check_sources(study.base, study.reasoning)
    started = time.monotonic()
    with Workdir(path, to_json(study), reuse=study.reuse) as workdir:
        log = RunLog(workdir.path)
        _begin(study, workdir, log, command)
        context = Run(workdir, log, mesh=device_mesh(study.mesh), checkpoints=study.checkpoints)
        base = context.model("base", study.base)
        reasoning, variant = _reasoning(study, base, context)
        data = _pairs_of_texts(study, context)
        embs, training = _convert(study, (base, reasoning), data, context)
        steps = training[embs[0].name]["step"][-1] + 1
        controls, control = control_embs(base, study.controls, study.convert, data, context)
        rows, failed = benchmark((base, reasoning), [*embs, *controls], study.benchmark, context)
        hrsa = compare_pairs(_pairs(base, reasoning, embs, controls), study.hrsa, context)
        models = {_report_name(model, study.convert.seeds): model for model in (base, reasoning, *embs, *controls)}
        left_out = tuned_tasks(study.benchmark, ", ".join(study.tune.families) if study.tune else None)
        results = {
            "schema": 1,
            "label": study.label,
            "demonstration": study.demonstration,
            "config": workdir.manifest["config"],
            "fingerprints": {name: model.fingerprint for name, model in models.items()},
            "models": {name: to_json(model) for name, model in models.items()},
            "reasoning": variant,
            "training": training,
            "benchmark": rows,
            "null_effect": null_effect(rows, left_out, study.benchmark.margin, study.convert.seeds, control),
            "hrsa": hrsa["pairs"],
            "realignment": hrsa["realignment"],
            "realignment_index": hrsa["realignment_index"],
            "trajectory": trajectory((base, reasoning), (embs[0], embs[1]), steps, study.convert, study.hrsa, context),
            "noise_floor": noise_floor(base, study.controls, study.hrsa, context),
            "planted": planted_truths(study.controls, context),
            "provenance": _provenance(workdir, command, study),
            "warnings": _warnings(variant, failed, hrsa),
            "timings": _timings(workdir, time.monotonic() - started),
        }
        write_json(workdir.path / "results.json", results)
        page.write(workdir.path / "results.json", workdir.path / "report.html")
        _end(results, workdir, log)
        log.close()
    return 3 if failed else 0


def _reasoning(study: StudyConfig, base: Model, context: Run) -> tuple[Model, dict[str, Any]]:
    """The reasoning model and what is known of how it was made."""
    if study.tune is not None:
        return tune(base, study.tune, context)
    assert study.reasoning is not None
    nothing = {"accuracy": None, "n": 0, "solution_loss": None}
    made = {"method": "existing checkpoint", "label": "not measured by this run", "before": nothing, "after": nothing}
    return context.model("reasoning", study.reasoning), made


def _pairs_of_texts(study: StudyConfig, context: Run) -> TrainingData:
    """The training pairs of every conversion, none of whose texts is benchmarked."""
    texts = task_texts(study_suite(study.benchmark, context).tasks()) if study.benchmark.suite == "offline" else {}
    return training_data(study.convert, context, texts)


def _convert(
    study: StudyConfig, backbones: tuple[Model, Model], data: TrainingData, context: Run
) -> tuple[list[Model], dict[str, dict[str, Any]]]:
    """Both backbones, every seed, by the same recipe on the same pairs in the same order; the manifest proves it."""
    done = convert_all(list(backbones), study.convert, data, context)
    embs = [build(Model, fields) for fields in done["models"].values()]
    training = {
        _report_name(emb, study.convert.seeds): {
            "step": done["training"][emb.key]["steps"],
            "loss": done["training"][emb.key]["loss"],
            "data": done["training"][emb.key]["stats"],
        }
        for emb in embs
    }
    return embs, training


def _pairs(base: Model, reasoning: Model, embs: list[Model], controls: list[Model]) -> dict[str, tuple[Model, Model]]:
    """What HRSA compares: backbones, embedding models of one seed, two seeds of one backbone (the ceiling), and the
    base's embedding model with one that began from random weights."""
    pairs = {BACKBONES: (base, reasoning), EMBEDDINGS: (embs[0], embs[1])}
    if len(embs) > 2:
        pairs[CEILING] = (embs[0], embs[2])
    pairs |= {f"base-Emb_vs_{model.name}": (embs[0], model) for model in controls if model.name == RANDOM_EMB}
    return pairs


def _report_name(model: Model, seeds: tuple[int, ...]) -> str:
    """base-Emb for the first seed, base-Emb-s1 for the others."""
    return model.name if model.seed in (None, seeds[0]) else model.key


def _warnings(variant: dict[str, Any], failed: list[str], hrsa: dict[str, Any]) -> list[str]:
    found = [f"task {text}" for text in failed]
    if variant.get("label"):
        found.append(f"reasoning variant: {variant['label']}")
    for name, pair in hrsa["pairs"].items():
        found += [f"{name}: {measure} was refused: {why}" for measure, why in pair.get("refused", {}).items()]
    return found


def _provenance(workdir: Workdir, command: str, study: StudyConfig) -> dict[str, Any]:
    return {
        "command": command,
        "versions": workdir.manifest["versions"],
        "seeds": list(study.convert.seeds),
        "pairing": workdir.manifest["pairing"],
    }


def _timings(workdir: Workdir, seconds: float) -> dict[str, Any]:
    """Seconds and peak memory of every stage when it was run, and of this command."""
    stages = {
        name: {"seconds": stage["seconds"], "peak_mb": stage["peak_mb"]}
        for name, stage in workdir.manifest["stages"].items()
    }
    peak = max((stage["peak_mb"] for stage in stages.values()), default=0.0)
    return {**stages, "this command": {"seconds": round(seconds, 1), "peak_mb": peak}}


def stage_names(study: StudyConfig) -> list[str]:
    """The stages of the study in the order in which they run."""
    seeds, controls = study.convert.seeds, study.controls
    embs = [f"{name}-Emb-s{seed}" for seed in seeds for name in ("base", "reasoning")]
    control = [f"{CONTROL}-s{seed}" for seed in seeds if controls.undertrained_steps]
    from_random = [f"{RANDOM_EMB}-s{seeds[0]}"] if controls.random_weights else []
    untrained = [f"{name}-{attention}" for name in ("base", "reasoning") for attention in ("causal", "bidirectional")]
    return [
        *(["tune"] if study.tune else []),
        *(f"convert/{name}" for name in [*embs, *control]),
        *([f"reset/{RANDOM}"] if controls.random_weights else []),
        *(f"convert/{name}" for name in from_random),
        *(f"benchmark/{n}" for n in [*embs, *control, *from_random, *untrained, "bag-of-words", "random"]),
        "hrsa",
        *(["trajectory"] if study.convert.snapshots else []),
        *(["noise_floor"] if controls.noise_floor else []),
        *(["planted"] if controls.planted else []),
    ]


def _begin(study: StudyConfig, workdir: Workdir, log: RunLog, command: str) -> None:
    made = study.reasoning or (f"the base tuned on {', '.join(study.tune.families)}" if study.tune else "")
    title = f"study: does {made} embed better than {study.base}?"
    opening(log, workdir, title, stages=stage_names(study), command=command, note=study.label)


def _end(results: dict[str, Any], workdir: Workdir, log: RunLog) -> None:
    log.result(f"\n{terminal_table(results)}\n{summary(results).opening()}\n")
    files = {name: workdir.path / f"{name}.{kind}" for name, kind in (("results", "json"), ("report", "html"))}
    closing(log, workdir, results["timings"]["this command"]["seconds"], files=files)
