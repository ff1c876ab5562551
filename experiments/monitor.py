"""Evaluation during a conversion: a score every so many steps, the best weights, early stopping, snapshots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.run import Run
from hrsa_jax.data.prompts import QUERY_TEMPLATE
from hrsa_jax.embedding.encoder import Encoder
from hrsa_jax.evaluation.mteb_encoder import MTEBEncoder
from hrsa_jax.evaluation.suites import means, run_tasks, suite
from hrsa_jax.models.backbone import Backbone
from hrsa_jax.runtime.checkpoint import Checkpoints
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import RunLog
from hrsa_jax.runtime.loop import TrainState

#: (name of the model, a Backbone that runs as the embedding model, folder for results) -> task -> score in 0-1
Evaluate = Callable[[str, Backbone, Path], dict[str, float]]


@dataclass(frozen=True)
class MonitorConfig:
    """Every `every` steps, and after the last, the model is scored: the mean of the tasks' main metrics.

    suite, size, tasks: see hrsa_jax/evaluation/suites.py. patience: stop after so many evaluations without a new
    best (None: never). keep: which weights become the model.
    """

    every: int
    suite: str = "offline"
    size: Literal["small", "full"] = "small"
    tasks: tuple[str, ...] | None = None
    max_length: int = 512
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    batch_tokens: int = 4096
    patience: int | None = None
    keep: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        if self.every < 1 or (self.patience is not None and self.patience < 1):
            raise InputError(f"monitor: every={self.every} and patience={self.patience} must be at least 1")


def task_evaluation(config: MonitorConfig, run: Run, template: str = QUERY_TEMPLATE) -> Evaluate:
    """Scores a model on the config's suite; finished tasks are read again from their folder."""
    tasks = suite(config.suite, folder=run.workdir.path / "stages" / "tasks", size=config.size, names=config.tasks)

    def evaluate(name: str, backbone: Backbone, folder: Path) -> dict[str, float]:
        length = min(config.max_length, backbone.config.max_position_embeddings)
        encoder = Encoder(
            backbone,
            attention=backbone.attention,  # type: ignore[arg-type]
            max_length=length,
            dtype=config.dtype,
            batch_tokens=config.batch_tokens,
        )
        scores = run_tasks(MTEBEncoder(name, encoder, template=template), tasks.tasks, folder)
        failed = [f"{score.task} ({score.error})" for score in scores if score.score is None]
        if failed:
            raise InputError(f"{name} cannot be scored on {'; '.join(failed)}: leave the task out, or repair its data")
        return {score.task: float(score.score) for score in scores if score.score is not None} | {
            "mean": means(scores, [score.task for score in scores])["by_task"]
        }

    return evaluate


class Monitor:
    """What happens between the steps of one conversion; used as a context manager around `train`.

    Args:
        label: of the run in the log; scores are logged under `<label>/evaluation`.
        folder: for the best checkpoints and the tasks' results.
        score: (steps done, state) -> task -> score, "mean" among them.
    """

    def __init__(
        self, config: MonitorConfig, steps: int, label: str, folder: Path, log: RunLog, score: Callable[..., Any]
    ):
        self.config, self.steps, self.stage, self._log, self._score = config, steps, f"{label}/evaluation", log, score
        self._best = Checkpoints(folder / "best", keep=2)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self._best.close()

    def on_step(self, done: int, state: TrainState) -> bool:
        """Scores where that is due; True when training should stop."""
        if done % self.config.every and done != self.steps:
            return False
        scores = self._score(done, state)
        self._log.rewind(self.stage, done)  # rows of a run that was cut off after this step
        best = self.best_step()
        self._log.metrics(self.stage, done, scores)
        shown = ", ".join(f"{task} {value:.4f}" for task, value in scores.items())
        self._log.line(f"  {self.stage} after step {done}: {shown}")
        if best is None or scores["mean"] > self._history()[best]:
            self._best.save(done, {"trainable": state.trainable})
        return self.stopped_at() == done

    def best_step(self) -> int | None:
        """The earliest step with the highest mean so far."""
        history = self._history()
        return max(history, key=lambda step: (history[step], -step)) if history else None

    def stopped_at(self) -> int | None:
        """The step after which patience ran out."""
        best, since = -1.0, 0
        for step, mean in sorted(self._history().items()):
            best, since = (mean, 0) if mean > best else (best, since + 1)
            if self.config.patience is not None and since >= self.config.patience:
                return step
        return None

    def curve(self) -> list[dict[str, Any]]:
        """[{"step", "mean", task: score, ...}] in order."""
        return [{key: value for key, value in row.items() if key != "stage"} for row in self._log.history(self.stage)]

    def restore_best(self, state: TrainState) -> TrainState:
        """The state with the weights of the best evaluation."""
        best = self.best_step()
        self._best.wait()
        saved = self._best.restore({"trainable": state.trainable}, best)
        return TrainState(state.step, saved["trainable"], state.frozen, state.opt_state)

    def _history(self) -> dict[int, float]:
        return {row["step"]: row["mean"] for row in self._log.history(self.stage)}
