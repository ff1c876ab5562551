"""Benchmarks the models of a study through mteb: embedding models, untrained backbones, and two that know nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from experiments.run import Attention, Model, Run
from hrsa_jax.embedding.encoder import Encoder
from hrsa_jax.evaluation.baselines import HashedBagOfWords, RandomVectors
from hrsa_jax.evaluation.mteb_encoder import MTEBEncoder, TextEncoder
from hrsa_jax.evaluation.offline_registry import OFFLINE_TASKS
from hrsa_jax.evaluation.offline_tasks import task_name
from hrsa_jax.evaluation.suites import Suite, run_tasks, suite
from hrsa_jax.runtime.errors import InputError


@dataclass(frozen=True)
class BenchmarkConfig:
    """suite: see hrsa_jax/evaluation/suites.py; size and tasks (None: all) are of the offline suite.

    margin: points within which a difference counts as none; fixed before the comparison is seen.
    """

    suite: str = "offline"
    size: Literal["small", "full"] = "small"
    tasks: tuple[str, ...] | None = None
    margin: float = 1.0
    max_length: int = 512
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    batch_tokens: int = 4096

    def __post_init__(self) -> None:
        if self.margin <= 0:
            raise InputError(f"config.benchmark.margin={self.margin}: give a positive number of points")


@dataclass(frozen=True)
class _Contestant:
    """One row of the benchmark table, made when its turn comes."""

    name: str
    attention: str
    seed: int | None
    fingerprint: str
    make: Callable[[], TextEncoder]

    @property
    def key(self) -> str:
        seed = "" if self.seed is None else f"-s{self.seed}"
        mode = f"-{self.attention}" if self.attention != "none" and self.seed is None else ""
        return f"{self.name}{mode}{seed}"


def study_suite(config: BenchmarkConfig, run: Run) -> Suite:
    """The suite of the config; the offline one is written below the workdir."""
    folder = run.workdir.path / "stages" / "tasks"
    return suite(config.suite, folder=folder, size=config.size, names=config.tasks)


def benchmark(
    backbones: Sequence[Model], embs: Sequence[Model], config: BenchmarkConfig, run: Run
) -> tuple[list[dict[str, Any]], list[str]]:
    """Scores of every model on every task.

    Returns:
        Rows {"model", "attention", "seed", "task", "type", "metric", "score"}, and one sentence per failed task.
    """
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    tasks = study_suite(config, run)
    content = {task.metadata.name: task.metadata.dataset["revision"] for task in tasks.tasks()}
    for contestant in _contestants(backbones, embs, config, run):
        inputs = {"model": contestant.fingerprint, "attention": contestant.attention, "tasks": content}
        inputs |= {"config": {key: value for key, value in asdict(config).items() if key != "margin"}}
        with run.workdir.stage(f"benchmark/{contestant.key}", inputs) as stage:
            if not stage.done:
                run.log.line(f"Benchmark of {contestant.key} ({tasks.label})")
                model = MTEBEncoder(contestant.key, contestant.make())
                scores = run_tasks(model, tasks.tasks, stage.path / "results", log=run.log)
                stage.complete([asdict(score) for score in scores])
        for score in stage.result:
            rows.append(
                {
                    "model": contestant.name,
                    "attention": contestant.attention,
                    "seed": contestant.seed,
                    **{key: score[key] for key in ("task", "type", "metric", "score")},
                }
            )
            if score["error"]:
                failed.append(f"{score['task']} failed for {contestant.key}: {score['error']}")
    return rows, failed


def tuned_tasks(config: BenchmarkConfig, tuned_family: str | None) -> set[str]:
    """Names of the tasks whose questions come from the family that the variant was tuned on."""
    if tuned_family is None or config.suite != "offline":
        return set()
    return {task_name(name, config.size) for name, task in OFFLINE_TASKS.items() if task.tuned_family}


def _contestants(
    backbones: Sequence[Model], embs: Sequence[Model], config: BenchmarkConfig, run: Run
) -> Iterator[_Contestant]:
    """Embedding models as trained; backbones in both attention modes, to be compared with by the better one."""
    for model in embs:
        make = partial(_encoder, model, model.attention, config, run)
        yield _Contestant(model.name, model.attention, model.seed, model.fingerprint, make)
    for model in backbones:
        for attention in ("causal", "bidirectional"):
            make = partial(_encoder, model, attention, config, run)
            yield _Contestant(model.name, attention, None, model.fingerprint, make)
    for name, kind in (("bag-of-words", HashedBagOfWords), ("random", RandomVectors)):
        yield _Contestant(name, "none", None, kind().fingerprint, kind)


def _encoder(model: Model, attention: Attention, config: BenchmarkConfig, run: Run) -> Encoder:
    """Pooling and normalisation as the model was saved with; a backbone is mean-pooled and normalised."""
    backbone = run.load(model.source)
    length = min(config.max_length, backbone.config.max_position_embeddings)
    return Encoder(
        backbone, attention=attention, max_length=length, dtype=config.dtype, batch_tokens=config.batch_tokens
    )
