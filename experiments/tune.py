"""Makes the reasoning variant of a backbone: SFT on worked solutions, GRPO on verifiable rewards; or writes traces.

`tune` is a stage of a study. As an experiment of its own (`run`) this file does one of the three methods, measures the
model before and after, and writes results.json and report.html. All training goes through runtime/loop.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import jax
from flax import nnx

from experiments.announce import closing, opening
from experiments.run import MeshConfig, Model, Run, device_mesh
from experiments.variant import change, label, measure, numbers, variant_text, write_report
from hrsa_jax.models.backbone import Backbone
from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.lora import LoRAConfig, add_lora, merge_lora, split_trainable
from hrsa_jax.models.source import check_sources
from hrsa_jax.reasoning.grpo import GRPOConfig
from hrsa_jax.reasoning.policy import grpo_step
from hrsa_jax.reasoning.sft import SFTConfig, sft_batches, sft_loss_fn
from hrsa_jax.reasoning.sources import load_problems
from hrsa_jax.reasoning.tasks import Problem, Style, check_disjoint
from hrsa_jax.reasoning.traces import TraceConfig, summary, write_traces
from hrsa_jax.runtime.config import build, to_json
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import RunLog, counted
from hrsa_jax.runtime.loop import OptimConfig, TrainState, init_state, make_optimizer, make_step, train
from hrsa_jax.runtime.mesh import shard_batch
from hrsa_jax.runtime.processes import written_once
from hrsa_jax.runtime.workdir import Stage, Workdir, write_json

_MODEL = "stages/tune/model"
Method = Literal["sft", "grpo", "trace"]
_CURVES = (
    *("loss", "reward", "kl", "length", "surprisal", "mixed_groups", "truncated", "well_formed", "repetition"),
    *("format_share", "sampler_mismatch", "seconds_sample", "seconds_score", "seconds_train"),
)


@dataclass(frozen=True)
class TuneConfig:
    """How the variant is made and what is measured around it; lora None trains every weight.

    Training questions: `problems` of `family`, and `mixed_in_problems` of each of `mixed_in` (families, JSON-lines
    files, "gsm8k", "math": see reasoning/sources.py). The loss on solutions is measured on `held_out` problems of
    `family` (and of its unseen templates, where there are any), accuracy on `accuracy_questions` of
    `accuracy_family`, asked for in `accuracy_style` at `accuracy_temperature`; all before and after. seed: of the
    held-out draws.
    `recipe` is read by method sft, `grpo` by grpo, `trace` by trace.
    """

    steps: int
    optim: OptimConfig
    method: Method = "sft"
    recipe: SFTConfig = field(default_factory=SFTConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    trace: TraceConfig = field(default_factory=TraceConfig)
    lora: LoRAConfig | None = field(default_factory=LoRAConfig)
    family: str = "gsm_symbolic"
    mixed_in: tuple[str, ...] = ()
    problems: int = 400
    mixed_in_problems: int = 100
    held_out: int = 32
    accuracy_family: str = "chain_sum"
    accuracy_questions: int = 32
    accuracy_style: Style = "few_shot"
    accuracy_temperature: float = 0.0
    checkpoint_every: int = 20

    def __post_init__(self) -> None:
        if min(self.steps, self.problems, self.held_out, self.accuracy_questions) < 1:
            raise InputError("config.tune: steps, problems, held_out and accuracy_questions must be at least 1")
        if self.method != "trace":
            self.optim.learning_rate_at(self.updates)

    @property
    def updates(self) -> int:
        """Of the weights, over the whole run."""
        return self.steps * (self.grpo.updates if self.method == "grpo" else 1)

    @property
    def families(self) -> tuple[str, ...]:
        """Everything that is trained on."""
        return (self.family, *self.mixed_in)

    @property
    def seed(self) -> int:
        return self.grpo.seed if self.method == "grpo" else self.recipe.seed


@dataclass(frozen=True)
class TuneRun:
    """A tune experiment: base is a model source; checkpoints: gs:// address for those of training, not the workdir."""

    base: str
    tune: TuneConfig
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoints: str = ""
    label: str = ""

    def __post_init__(self) -> None:
        if self.checkpoints and self.tune.method == "trace":
            raise InputError("config.checkpoints is not used by method 'trace', which trains nothing: leave it empty")


def run(config: dict[str, Any], path: str, *, command: str) -> int:
    """Runs or continues one tuning (or writes traces) in the folder `path`; returns the exit status."""
    method = config.pop("method", None)  # --config.method=... is short for --config.tune.method=...
    if method is not None:
        config = config | {"tune": {**config["tune"], "method": method}}
    setting, started = build(TuneRun, config), time.monotonic()
    check_sources(setting.base)
    with Workdir(path, to_json(setting)) as workdir:
        log = RunLog(workdir.path)
        context = Run(workdir, log, mesh=device_mesh(setting.mesh), checkpoints=setting.checkpoints)
        names = ["trace" if setting.tune.method == "trace" else "tune"]
        opening(log, workdir, f"tune of {setting.base} by {setting.tune.method}", stages=names, command=command)
        base = context.model("base", setting.base)
        if setting.tune.method == "trace":
            made: dict[str, Any] = {"traces": trace(base, setting.tune, context)}
        else:
            model, variant = tune(base, setting.tune, context)
            made = {"reasoning": variant, "models": {"base": to_json(base), "reasoning": to_json(model)}}
        results = {
            "schema": 1,
            "kind": "tune",
            "label": setting.label,
            "config": workdir.manifest["config"],
            **made,
            "provenance": {"command": command, "versions": workdir.manifest["versions"]},
            "timings": {"this command": {"seconds": round(time.monotonic() - started, 1)}},
        }
        write_json(workdir.path / "results.json", results)
        write_report(results, workdir.path / "report.html")
        files = {"results": workdir.path / "results.json", "report": workdir.path / "report.html"}
        if "reasoning" in results:
            log.result(f"\n{variant_text(results)}\n")
        closing(log, workdir, results["timings"]["this command"]["seconds"], files=files)
        log.close()
    return 0


def tune(base: Model, config: TuneConfig, run: Run) -> tuple[Model, dict[str, Any]]:
    """Tunes the base, or finds that done.

    Returns:
        The reasoning model, and results.json's `reasoning` section.
    """
    if config.method == "trace":
        raise InputError("config.tune.method='trace' makes no variant: give sft or grpo")
    with run.workdir.stage("tune", {"base": base.fingerprint, "config": to_json(config)}) as stage:
        if not stage.done:
            how = {"sft": "worked solutions", "grpo": "verifiable rewards"}[config.method]
            run.log.line(
                f"  tuning {base.name} on {how} of {', '.join(config.families)}: {counted(config.steps, 'step')}"
            )
            stage.complete(_tune(run.load(base.source), config, stage, run))
    variant = stage.result["variant"]
    return replace(base, name="reasoning", source=_MODEL, fingerprint=stage.result["fingerprint"]), variant


def trace(base: Model, config: TuneConfig, run: Run) -> dict[str, Any]:
    """Sampled solutions of training questions as JSON lines, `traces.jsonl` in the workdir; or finds that done."""
    with run.workdir.stage("trace", {"base": base.fingerprint, "config": to_json(config)}) as stage:
        if not stage.done:
            backbone = run.load(base.source)
            problems = _training_problems(config)
            path = run.workdir.path / "traces.jsonl"
            rows = write_traces(
                path, backbone.decoder, backbone.tokenizer, problems, config.trace, stop_ids=backbone.stop_token_ids
            )
            stage.complete({"file": path.name, **summary(rows)})
    run.log.line(f"  {stage.result['rows']} solutions in {stage.result['file']}: {stage.result['difficulty']}")
    return stage.result


def _tune(backbone: Backbone, config: TuneConfig, stage: Stage, run: Run) -> dict[str, Any]:
    problems, tests = _problems(config)
    trained, facts = {"sft": _sft, "grpo": _grpo}[config.method](backbone, config, problems, stage, run)
    tuned = backbone.with_decoder(trained if config.lora is None else merge_lora(trained), source=_MODEL)
    with written_once(stage.path / "model") as place:
        tuned.export(place)
    run.log.line("  measuring held-out solutions and questions, before and after")
    settings: dict[str, Any] = {
        "solution_style": config.recipe.style,
        "style": config.accuracy_style,
        "temperature": config.accuracy_temperature,
        "dtype": config.recipe.dtype,
        "max_new_tokens": config.grpo.max_new_tokens,
    }
    before = measure(backbone, None, tests, **settings)
    after = measure(tuned, backbone, tests, **settings)
    rows = run.log.history("tune")
    curves = {name: [row.get(name) for row in rows] for name in _CURVES if any(name in row for row in rows)}
    return {
        "fingerprint": run.load(_MODEL).fingerprint,
        "variant": {
            "method": config.method,
            "family": ", ".join(config.families),
            "accuracy_family": config.accuracy_family,
            "accuracy_setting": f"{config.accuracy_style} prompt, temperature {config.accuracy_temperature}",
            "label": label(before, after),
            "before": numbers(before),
            "after": numbers(after),
            "loss_change": change(before, after, "held_out"),
            "unseen_loss_change": change(before, after, "unseen"),
            "training": {"step": [row["step"] for row in rows], **curves, "data": facts},
        },
    }


def _training_problems(config: TuneConfig) -> list[Problem]:
    counts = {name: config.mixed_in_problems for name in config.mixed_in} | {config.family: config.problems}
    return [problem for name in config.families for problem in load_problems(name, counts[name], seed=config.seed)]


def _problems(config: TuneConfig) -> tuple[list[Problem], dict[str, list[Problem]]]:
    """(training problems, {"questions", "held_out", "unseen"}); nothing is in both."""
    seed, problems = config.seed, _training_problems(config)
    questions = load_problems(config.accuracy_family, config.accuracy_questions, seed=seed, split="held_out")
    tests = {
        "questions": questions,
        "held_out": load_problems(config.family, config.held_out, seed=seed, split="held_out"),
    }
    if config.family == "gsm_symbolic":
        tests["unseen"] = load_problems(config.family, config.held_out, seed=seed, split="unseen")
    for found in tests.values():
        check_disjoint(problems, found)
    return problems, tests


def _sft(
    backbone: Backbone, config: TuneConfig, problems: list[Problem], stage: Stage, run: Run
) -> tuple[Decoder, dict[str, Any]]:
    batch_at, facts = sft_batches(problems, backbone.tokenizer, config.recipe)
    graphdef, state, optimizer = _start(backbone, config)
    step = make_step(sft_loss_fn(graphdef, config.recipe), optimizer)
    place = jax.device_put if run.mesh is None else partial(shard_batch, run.mesh)
    return _trained(graphdef, state, step, batch_at, config, stage, run, place), facts


def _grpo(
    backbone: Backbone, config: TuneConfig, problems: list[Problem], stage: Stage, run: Run
) -> tuple[Decoder, dict[str, Any]]:
    graphdef, state, optimizer = _start(backbone, config)
    step, batch_at = grpo_step(
        graphdef,
        config.grpo,
        optimizer,
        problems,
        backbone.tokenizer,
        reference=backbone.decoder if config.lora is None else None,
        stop_ids=backbone.stop_token_ids,
        seen=run.log.history("tune"),
        place=jax.device_put if run.mesh is None else partial(shard_batch, run.mesh),
    )
    facts = {"problems": len(problems), "samples": config.steps * config.grpo.questions * config.grpo.group}
    return _trained(graphdef, state, step, batch_at, config, stage, run, lambda numbers: numbers), facts


def _start(backbone: Backbone, config: TuneConfig) -> tuple[Any, TrainState, Any]:
    decoder = backbone.decoder if config.lora is None else add_lora(backbone.decoder, config.lora, seed=config.seed)
    graphdef, trainable, frozen = split_trainable(decoder, lora=config.lora is not None)
    optimizer = make_optimizer(config.optim, config.updates)
    return graphdef, init_state(trainable, frozen, optimizer), optimizer


def _trained(
    graphdef: Any,
    state: TrainState,
    step: Callable[[TrainState, Any], Any],
    batch_at: Callable[[int], Any],
    config: TuneConfig,
    stage: Stage,
    run: Run,
    place: Callable[[Any], Any],
) -> Decoder:
    with nullcontext() if run.mesh is None else jax.set_mesh(run.mesh):
        state = train(
            state,
            step,
            batch_at,
            steps=config.steps,
            directory=stage.path,
            bucket=run.bucket(stage),
            checkpoint_every=config.checkpoint_every,
            log=run.log,
            label="tune",
            place=place,
        )
    return nnx.merge(graphdef, state.trainable, state.frozen)
