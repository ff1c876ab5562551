"""Benchmarks models through mteb: embedding models, untrained backbones, and two that know nothing.

`benchmark` is a stage of a study. As an experiment of its own (`run`) this file scores any models (folders of
sentence-transformers in our families too, hub ids, .gguf, package:NAME) on any suites, in mteb's leaderboard layout,
and prints them beside published scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from experiments.announce import opening, short
from experiments.run import Attention, MeshConfig, Model, Run, device_mesh
from hrsa_jax.embedding.encoder import Encoder
from hrsa_jax.evaluation.baselines import HashedBagOfWords, RandomVectors
from hrsa_jax.evaluation.mteb_encoder import MTEBEncoder, TextEncoder
from hrsa_jax.evaluation.offline_registry import OFFLINE_TASKS, check_names
from hrsa_jax.evaluation.offline_tasks import task_name
from hrsa_jax.evaluation.runner import TaskScore, read_scores, refuse_several_processes, run_tasks
from hrsa_jax.evaluation.suites import Suite, suite
from hrsa_jax.evaluation.tables import comparison_table, language_means, means, read_published
from hrsa_jax.models.backbone import load
from hrsa_jax.models.source import check_sources
from hrsa_jax.runtime.config import build, to_json
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import RunLog
from hrsa_jax.runtime.workdir import Workdir, write_json


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
        if self.suite == "offline":
            check_names(self.tasks or ())  # before anything is trained


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
                mode = "" if contestant.attention == "none" else f", {contestant.attention} attention"
                run.log.line(f"  {tasks.label}{mode}")
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
        backbone,
        attention=attention,
        max_length=length,
        dtype=config.dtype,
        batch_tokens=config.batch_tokens,
        allow_empty=True,
    )


@dataclass(frozen=True)
class EvaluateConfig:
    """models: sources, each with a name of its own in front if wanted ("base-Emb-s0=path/to/folder").

    tasks: only these tasks, of one suite. prompts: "instructions" (each task's own, in our template) or "stored" (the
    model's own prompts, chosen by mteb's rule). attention "native" is what the model was saved with; max_length 0 its
    own. published: file of scores to print beside. data_folder: copies of hub data sets, <org>/<name> below it.
    results: folder of mteb's results, shared by workers; "" is results/ in the workdir.
    """

    models: tuple[str, ...]
    suites: tuple[str, ...] = ("offline",)
    tasks: tuple[str, ...] | None = None
    size: Literal["small", "full"] = "small"
    prompts: Literal["instructions", "stored"] = "instructions"
    attention: Literal["native", "causal", "bidirectional"] = "native"
    max_length: int = 0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    batch_tokens: int = 4096
    baselines: bool = True
    predictions: bool = False
    published: str = ""
    data_folder: str = ""
    results: str = ""
    worker: int = 0
    workers: int = 1
    mesh: MeshConfig = field(default_factory=MeshConfig)
    label: str = ""

    def __post_init__(self) -> None:
        names = [name for name, _ in self.named_models()]
        if not names or len(set(names)) != len(names):
            raise InputError(f"config.models={self.models}: give one model or more, each with a name of its own")
        if not self.suites or (self.tasks is not None and len(self.suites) > 1):
            raise InputError(f"config.suites={self.suites}: give at least one, and only one together with config.tasks")
        if not 0 <= self.worker < self.workers:
            raise InputError(f"config.worker={self.worker} is not below config.workers={self.workers}: count from 0")

    def named_models(self) -> list[tuple[str, str]]:
        """(name, source) of every model; without a name in front it is the last part of the source."""
        found = []
        for text in self.models:
            name, equals, source = text.partition("=")
            last = text.rstrip("/").removeprefix("package:").rpartition("/")[2].partition("@")[0]
            found.append((name, source) if equals else (last.removesuffix(".gguf"), text))
        return found


def run(config: dict[str, Any], path: str, *, command: str) -> int:
    """Runs or continues an evaluation in the folder `path`; returns the exit status."""
    refuse_several_processes()
    setting = build(EvaluateConfig, config)
    published = read_published(setting.published) if setting.published else {}
    check_sources(*(source for _, source in setting.named_models()))
    with Workdir(path, to_json(setting)) as workdir:
        log = RunLog(workdir.path)
        folder = workdir.path / "tasks"
        data = setting.data_folder or None
        suites = [
            suite(n, folder=folder, size=setting.size, names=setting.tasks, data_folder=data) for n in setting.suites
        ]
        title = f"evaluation of {', '.join(setting.models)} on {', '.join(s.label for s in suites)}"
        opening(log, workdir, title, command=command)
        home = Path(setting.results) if setting.results else workdir.path / "results"
        scores: dict[str, dict[str, list[TaskScore]]] = {s.name: {} for s in suites}
        facts, failed = {}, list[str]()
        for name, make in _evaluated(setting):
            model = make()
            facts[name] = {"mteb_name": model.name, "revision": model.revision, "attention": model.encoder.attention}
            for chosen in suites:
                log.line(f"{name} on {chosen.name}")
                own = run_tasks(
                    model,
                    chosen.tasks,
                    home,
                    log=log,
                    worker=setting.worker,
                    workers=setting.workers,
                    predictions=setting.predictions,
                )
                scores[chosen.name][name] = _merged(own, read_scores(model, chosen.tasks, home))
                failed += [f"{score.task} failed for {name}: {score.error}" for score in own if score.error]
        results = {
            "schema": 1,
            "kind": "evaluation",
            "label": setting.label,
            "config": workdir.manifest["config"],
            "models": facts,
            "suites": {s.name: _suite_result(s, scores[s.name]) for s in suites},
            "published": published,
            "failed": failed,
            "provenance": {"command": command, "versions": workdir.manifest["versions"]},
        }
        write_json(workdir.path / "results.json", results)
        _print_tables(suites, scores, published, failed, log)
        log.result(f"\nresults  {short(workdir.path / 'results.json')}\n         {short(home)} (mteb's layout)")
        log.close()
    return 3 if failed else 0


def _evaluated(setting: EvaluateConfig) -> Iterator[tuple[str, Callable[[], MTEBEncoder]]]:
    for name, source in setting.named_models():
        yield name, partial(_wrapped, name, source, setting)
    if setting.baselines:
        for name, kind in (("bag-of-words", HashedBagOfWords), ("random", RandomVectors)):
            yield name, partial(_baseline, name, kind)


def _wrapped(name: str, source: str, setting: EvaluateConfig) -> MTEBEncoder:
    encoder = Encoder(
        load(source, mesh=device_mesh(setting.mesh)),
        attention=None if setting.attention == "native" else setting.attention,
        max_length=setting.max_length or None,
        dtype=setting.dtype,
        batch_tokens=setting.batch_tokens,
        allow_empty=True,
    )
    return MTEBEncoder(name, encoder, prompts=encoder.prompts if setting.prompts == "stored" else None)


def _baseline(name: str, kind: Callable[[], TextEncoder]) -> MTEBEncoder:
    return MTEBEncoder(name, kind())


def _merged(own: Sequence[TaskScore], everybody: Sequence[TaskScore]) -> list[TaskScore]:
    """All tasks of the suite: what this worker ran (with its failures), and what the others have finished."""
    mine = {score.task: score for score in own}
    return [mine.get(score.task, score) for score in everybody]


def _suite_result(chosen: Suite, scores: dict[str, list[TaskScore]]) -> dict[str, Any]:
    """Scores, means (or the sentence that names the missing tasks) and breakdowns of every model."""
    result: dict[str, Any] = {"label": chosen.label, "models": {}}
    for name, found in scores.items():
        row: dict[str, Any] = {"scores": [asdict(score) for score in found]}
        try:
            row["means"] = means(found, [score.task for score in found])
        except InputError as error:
            row["means"] = None
            row["missing"] = str(error)
        row["languages"] = {code: {"mean": m, "subsets": n} for code, (m, n) in language_means(found).items()}
        result["models"][name] = row
    return result


def _print_tables(
    suites: Sequence[Suite],
    scores: dict[str, dict[str, list[TaskScore]]],
    published: dict[str, dict[str, float]],
    failed: Sequence[str],
    log: RunLog,
) -> None:
    for chosen in suites:
        tasks = [score.task for score in next(iter(scores[chosen.name].values()))]
        beside = {name: row for name, row in published.items() if set(row) & set(tasks)}
        log.result(f"\n{chosen.label}, points\n{comparison_table(scores[chosen.name], beside, tasks)}")
        for name, found in scores[chosen.name].items():
            pending = [score.task for score in found if score.error == "not finished"]
            if pending:
                log.problem(f"{name}: left to the other workers, not finished yet: {', '.join(pending)}")
    for text in failed:
        log.problem(f"FAILED: {text}")
