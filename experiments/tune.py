"""Makes the reasoning variant of a backbone by supervised tuning on worked solutions, and measures what it changed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flax import nnx

from experiments.run import Model, Run
from hrsa_jax.models.backbone import Backbone
from hrsa_jax.models.lora import LoRAConfig, add_lora, merge_lora, split_trainable
from hrsa_jax.reasoning.sft import Accuracy, SFTConfig, SolutionLoss, accuracy, sft_batches, sft_loss_fn, solution_loss
from hrsa_jax.reasoning.tasks import Problem, check_disjoint, make_problems
from hrsa_jax.runtime.config import to_json
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.loop import OptimConfig, init_state, make_optimizer, make_step, train

_MODEL = "stages/tune/model"


@dataclass(frozen=True)
class TuneConfig:
    """SFT on `problems` worked solutions of `family`; lora None trains every weight.

    The loss on solutions is measured on `held_out` problems of the family, accuracy on `accuracy_questions` short
    questions of `accuracy_family`, both before and after.
    """

    steps: int
    recipe: SFTConfig
    optim: OptimConfig
    lora: LoRAConfig | None = field(default_factory=LoRAConfig)
    family: str = "gsm_symbolic"
    problems: int = 400
    held_out: int = 32
    accuracy_family: str = "chain_sum"
    accuracy_questions: int = 32
    checkpoint_every: int = 20

    def __post_init__(self) -> None:
        if min(self.steps, self.problems, self.held_out, self.accuracy_questions) < 1:
            raise InputError("config.tune: steps, problems, held_out and accuracy_questions must be at least 1")


def tune(base: Model, config: TuneConfig, run: Run) -> tuple[Model, dict[str, Any]]:
    """Tunes the base, or finds that done.

    Returns:
        The reasoning model, and results.json's `reasoning` section.
    """
    with run.workdir.stage("tune", {"base": base.fingerprint, "config": to_json(config)}) as stage:
        if not stage.done:
            run.log.line(f"Tuning {base.name} on worked solutions of {config.family}: {config.steps} steps")
            stage.complete(_tune(run.load(base.source), config, stage.path, run))
    variant = stage.result["variant"]
    return replace(base, name="reasoning", source=_MODEL, fingerprint=stage.result["fingerprint"]), variant


def _tune(backbone: Backbone, config: TuneConfig, folder: Path, run: Run) -> dict[str, Any]:
    problems = make_problems(config.family, config.problems, seed=config.recipe.seed)
    held_out = make_problems(config.family, config.held_out, seed=config.recipe.seed, split="held_out")
    questions = make_problems(
        config.accuracy_family, config.accuracy_questions, seed=config.recipe.seed, split="held_out"
    )
    check_disjoint(problems, [*held_out, *questions])
    batch_at, stats = sft_batches(problems, backbone.tokenizer, config.recipe)
    decoder = (
        backbone.decoder if config.lora is None else add_lora(backbone.decoder, config.lora, seed=config.recipe.seed)
    )
    graphdef, trainable, frozen = split_trainable(decoder, lora=config.lora is not None)
    optimizer = make_optimizer(config.optim, config.steps)
    state = train(
        init_state(trainable, frozen, optimizer),
        make_step(sft_loss_fn(graphdef, config.recipe), optimizer),
        batch_at,
        steps=config.steps,
        directory=folder,
        checkpoint_every=config.checkpoint_every,
        log=run.log,
        label="tune",
    )
    trained = nnx.merge(graphdef, state.trainable, state.frozen)
    tuned = backbone.with_decoder(trained if config.lora is None else merge_lora(trained), source=_MODEL)
    tuned.export(folder / "model")
    run.log.line("  measuring held-out solutions and short questions, before and after")
    before, after = (_measure(model, config, held_out, questions) for model in (backbone, tuned))
    rows = run.log.history("tune")
    return {
        "fingerprint": run.load(_MODEL).fingerprint,
        "variant": {
            "method": "sft",
            "family": config.family,
            "accuracy_family": config.accuracy_family,
            "label": _label(before[0], after[0]),
            "before": _numbers(*before),
            "after": _numbers(*after),
            "loss_change": _change(before[1], after[1]),
            "training": {"step": [row["step"] for row in rows], "loss": [row["loss"] for row in rows], "data": stats},
        },
    }


def _measure(
    model: Backbone, config: TuneConfig, held_out: list[Problem], questions: list[Problem]
) -> tuple[Accuracy, SolutionLoss]:
    style, dtype = config.recipe.style, config.recipe.dtype
    right = accuracy(model.decoder, model.tokenizer, questions, stop_ids=model.stop_token_ids, dtype=dtype)
    return right, solution_loss(model.decoder, model.tokenizer, held_out, style=style, dtype=dtype)


def _numbers(right: Accuracy, loss: SolutionLoss) -> dict[str, Any]:
    return {
        "accuracy": right.rate,
        "n": right.n,
        "interval95": list(right.wilson95),
        "mean_length": right.mean_length,
        "share_truncated": right.share_truncated,
        "share_well_formed": right.share_well_formed,
        "solution_loss": loss.mean,
        "solution_loss_interval95": list(loss.interval95),
        "held_out": len(loss.tokens_N),
    }


def _change(before: SolutionLoss, after: SolutionLoss) -> dict[str, Any]:
    """Relative change of the held-out solution loss, paired by problem."""
    estimate, interval = after.change(before)
    return {"relative": estimate, "interval95": list(interval)}


def _label(before: Accuracy, after: Accuracy) -> str:
    """What every table that uses the variant must say of it."""
    if after.wilson95[0] > before.wilson95[1]:
        return "accuracy rose significantly (Wilson intervals disjoint)"
    if after.wilson95[1] < before.wilson95[0]:
        return "accuracy fell significantly (Wilson intervals disjoint)"
    return "accuracy did not rise significantly"
