"""Running mteb tasks: shared by workers, resumed task by task, failures reported, truncation counted.

Results lie in mteb's own folder layout (results/<model>/<revision>/<task>.json), so that they can be submitted to the
leaderboard as they are. Beside them, facts/ holds what mteb has no place for (the share of texts that were cut), and
predictions/, when asked for, what every query found.
"""

import io
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hrsa_jax.evaluation.mteb_encoder import MTEBEncoder
from hrsa_jax.runtime import processes
from hrsa_jax.runtime.errors import InputError

TasksFn = Callable[[], Iterable[Any]]


class Log(Protocol):
    """The part of runtime/logging.RunLog used here."""

    def line(self, text: str) -> None:
        """Prints one line."""


@dataclass(frozen=True)
class TaskScore:
    """One task's result: `score` is the task's main metric, 0-1, None when `error` says why there is none.

    truncated: share of the distinct texts that were cut at the encoder's maximum length; None when the encoder has
    none. languages: (subset, its languages, score) of every subset.
    """

    task: str
    type: str
    metric: str
    score: float | None
    seconds: float
    error: str | None = None
    truncated: float | None = None
    languages: tuple[tuple[str, tuple[str, ...], float], ...] = ()


def run_tasks(
    model: MTEBEncoder,
    tasks_fn: TasksFn,
    folder: str | Path,
    *,
    log: Log | None = None,
    worker: int = 0,
    workers: int = 1,
    predictions: bool = False,
) -> list[TaskScore]:
    """Evaluates a model on fresh tasks; finished ones are read from `folder`, failed ones reported and passed over.

    Args:
        model: one name per model and seed.
        tasks_fn: makes new task objects (Suite.tasks): clustering tasks change when they are used.
        folder: of mteb's results; may be shared by models, suites and workers.
        log: gets one line per task.
        worker, workers: this process runs every `workers`-th task, beginning with number `worker`; the others are
            left to processes with another number (read_scores collects them).
        predictions: also keep what every query of a retrieval task found, for bootstraps over queries.

    Returns:
        One TaskScore per task of this worker, in order; `error` is set where there is no score.

    Raises:
        InputError: a worker number that is not below the number of workers; a run of several processes.
    """
    refuse_several_processes()
    if not 0 <= worker < workers:
        raise InputError(f"worker={worker} of workers={workers}: give each process another number from 0 on")
    tasks = list(tasks_fn())[worker::workers]
    scores = []
    for number, task in enumerate(tasks, 1):
        score = _run_one(model, task, Path(folder), predictions)
        if log is not None:
            outcome = f"{score.metric} {score.score:.4f}" if score.score is not None else f"failed: {score.error}"
            cut = f", {score.truncated:.0%} of texts cut" if score.truncated else ""
            log.line(f"  {number}/{len(tasks)} {score.task}: {outcome} ({score.seconds:.1f} s{cut})")
        scores.append(score)
    return scores


def refuse_several_processes() -> None:
    """mteb asks for vectors text by text, which processes that compute together cannot answer.

    Raises:
        InputError: this is a run of several processes.
    """
    if processes.count() > 1:
        raise InputError(
            f"benchmarks run in one process, and this run has {processes.count()}: give the same command to one host "
            "alone, which keeps what is trained (a conversion: leave its monitor out)"
        )


def read_scores(model: MTEBEncoder, tasks_fn: TasksFn, folder: str | Path) -> list[TaskScore]:
    """What all workers have finished so far: one TaskScore per task of the suite, `error` "not finished" otherwise."""
    scores = []
    for task in tasks_fn():
        score = _read_one(model, task, Path(folder))
        name, kind, metric = task.metadata.name, str(task.metadata.type), task.metadata.main_score
        scores.append(score or TaskScore(name, kind, metric, None, 0.0, "not finished"))
    return scores


def prediction_folder(model: MTEBEncoder, folder: str | Path) -> Path:
    """Where run_tasks(predictions=True) keeps what the queries of each task found."""
    return Path(folder) / "predictions" / model.name.replace("/", "__") / model.revision


def _run_one(model: MTEBEncoder, task: Any, folder: Path, predictions: bool) -> TaskScore:
    import mteb
    from mteb.cache import ResultCache
    from threadpoolctl import threadpool_limits

    name, kind, metric = task.metadata.name, str(task.metadata.type), task.metadata.main_score
    cache = ResultCache(folder)
    _drop_cut_result(cache.get_task_result_path(name, model.mteb_model_meta))
    model.seen = model.cut = 0
    try:
        with _quiet(), threadpool_limits(limits=getattr(task, "scoring_threads", None)):
            mteb.evaluate(
                model,
                task,
                cache=cache,
                overwrite_strategy="only-missing",
                prediction_folder=prediction_folder(model, folder) if predictions else None,
                encode_kwargs={"batch_size": 256, "show_progress_bar": False},
                show_progress_bar=False,
                co2_tracker=False,
            )
        if model.seen and model.encoder.max_length is not None:
            _write_facts(_facts_path(model, name, folder), {"texts": model.seen, "truncated": model.cut})
        score = _read_one(model, task, folder)
        if score is None:
            raise FileNotFoundError(f"mteb wrote no result of {name}")
        if score.score is None or not np.isfinite(score.score):
            raise FloatingPointError(f"{metric} is {score.score}")
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        first_line = (str(error).strip() or "no message").splitlines()[0]
        return TaskScore(name, kind, metric, None, 0.0, f"{type(error).__name__}: {first_line}"[:300])
    return score


def _read_one(model: MTEBEncoder, task: Any, folder: Path) -> TaskScore | None:
    """A finished task from its file, whose six decimals make a resumed run give the same numbers; None otherwise."""
    from mteb.cache import ResultCache

    name, metric = task.metadata.name, task.metadata.main_score
    with _quiet():
        result = ResultCache(folder).load_task_result(name, model.mteb_model_meta)
    if result is None or not _complete(result.scores, task):
        return None
    subsets = tuple(
        (str(part["hf_subset"]), tuple(map(str, part["languages"])), float(part["main_score"]))
        for parts in result.scores.values()
        for part in parts
    )
    return TaskScore(
        name,
        str(task.metadata.type),
        metric,
        float(result.get_score()),
        float(result.evaluation_time or 0.0),
        truncated=_read_truncated(_facts_path(model, name, folder)),
        languages=subsets,
    )


def _complete(scores: Mapping[str, Sequence[Mapping[str, Any]]], task: Any) -> bool:
    """Whether all splits and subsets are there: mteb writes its file after every subset."""
    if not scores or getattr(task.metadata, "tasks", None):
        return bool(scores)
    return all(set(task.hf_subsets) <= {part["hf_subset"] for part in scores.get(s, [])} for s in task.eval_splits)


def _facts_path(model: MTEBEncoder, task: str, folder: Path) -> Path:
    return folder / "facts" / model.name.replace("/", "__") / model.revision / f"{task}.json"


def _write_facts(path: Path, facts: dict[str, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(json.dumps(facts), encoding="utf-8")
    os.replace(draft, path)


def _read_truncated(path: Path) -> float | None:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return float(facts["truncated"] / facts["texts"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _drop_cut_result(path: Path) -> None:
    """A result file that a killed process left half written is removed, so that its task runs again."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except ValueError:
        path.unlink()


@contextmanager
def _quiet() -> Iterator[None]:
    """None of the bars and warnings that mteb and `datasets` write for every task and subset."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        if shown:
            datasets.enable_progress_bars()
