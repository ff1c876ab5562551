"""Running a suite of mteb tasks: resumed task by task, failures reported, means that never hide a missing task.

Results lie in mteb's own folder layout (results/<model>/<revision>/<task>.json), so that they can be submitted to the
leaderboard as they are.
"""

import difflib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hrsa_jax.evaluation.mteb_encoder import MTEBEncoder
from hrsa_jax.evaluation.offline_data import Size
from hrsa_jax.evaluation.offline_tasks import offline_tasks
from hrsa_jax.runtime.errors import InputError

TasksFn = Callable[[], Iterable[Any]]

OFFLINE = "offline"
QA_TASKS = ("NQ", "HotpotQA", "FiQA2018", "NanoNQRetrieval", "NanoHotpotQARetrieval", "NanoFiQA2018Retrieval")
BENCHMARKS = ("NanoBEIR", "MTEB(eng, v2)", "MTEB(Multilingual, v2)", "MTEB(Code, v1)", "BRIGHT(v1.1)")
# The task of BRIGHT's first release scores its twelve subsets under one prompt, as the published tables very likely
# did; BRIGHT(v1.1) has a prompt per domain. Both are offered, and the label says which is which.
LABELS = {
    OFFLINE: "offline suite (a demonstration)",
    "BRIGHT(v1.1)": "BRIGHT v1.1, 12 short-document tasks, a prompt per domain",
    "bright_paper": "BRIGHT, 12 subsets under one prompt (as the published script very likely scored them)",
    "qa": "general question answering (NQ, HotpotQA, FiQA2018 and their Nano twins)",
}
SUITES = (OFFLINE, *BENCHMARKS, "bright_paper", "qa")


class Log(Protocol):
    """The part of runtime/logging.RunLog used here."""

    def line(self, text: str) -> None:
        """Prints one line."""


@dataclass(frozen=True)
class TaskScore:
    """One task's result: `score` is the task's main metric, 0-1, None when `error` says why there is none."""

    task: str
    type: str
    metric: str
    score: float | None
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class Suite:
    """A named list of tasks; call `tasks` anew for every model."""

    name: str
    label: str
    tasks: TasksFn


def suite(
    name: str,
    *,
    folder: str | Path | None = None,
    size: Size = "small",
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> Suite:
    """A suite by name: one of SUITES, any other benchmark of mteb, or a single mteb task.

    Args:
        name: e.g. "offline", "MTEB(eng, v2)", "qa", "SciFact".
        folder: where the offline suite's data sets go (needed for "offline" only).
        size, seed, names: of the offline suite, see offline_tasks.

    Raises:
        InputError: an unknown name (with the nearest valid one); data that is not on this machine while
            HF_HUB_OFFLINE=1.
    """
    if name == OFFLINE:
        if folder is None:
            raise InputError("the offline suite needs a folder for its data sets")
        return Suite(name, LABELS[name], lambda: offline_tasks(folder, names=names, size=size, seed=seed))
    make = _hub_tasks(name)
    _require_data(name, make())
    return Suite(name, LABELS.get(name, name), make)


def _hub_tasks(name: str) -> TasksFn:
    import mteb

    if name == "qa":
        return lambda: [mteb.get_task(task) for task in QA_TASKS]
    if name == "bright_paper":
        return lambda: [mteb.get_task("BrightRetrieval", eval_splits=["standard"])]
    benchmarks = {b.name for b in mteb.get_benchmarks()}
    if name in benchmarks:
        short_only = name == "BRIGHT(v1.1)"
        return lambda: [
            task
            for task in _fresh(mteb.get_benchmark(name).tasks)
            if not (short_only and task.metadata.name.endswith("LongRetrieval"))
        ]
    known = {t.metadata.name for t in mteb.get_tasks()}
    if name in known:
        return lambda: [mteb.get_task(name)]
    near = difflib.get_close_matches(name, [*SUITES, *sorted(benchmarks), *sorted(known)], 1, 0.4)
    raise InputError(
        f"there is no suite, benchmark or mteb task called {name!r}{f': did you mean {near[0]!r}?' if near else ''}"
    )


def _fresh(tasks: Iterable[Any]) -> list[Any]:
    """New objects of a benchmark's tasks with the benchmark's own choice of subsets and splits."""
    copies = []
    for task in tasks:
        copy = type(task)(seed=task.seed)
        copy.hf_subsets = list(task.hf_subsets)
        copy._eval_splits = task._eval_splits
        copies.append(copy)
    return copies


def _require_data(name: str, tasks: Iterable[Any]) -> None:
    """With HF_HUB_OFFLINE=1, one sentence at once instead of a failure per task."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() not in ("1", "TRUE", "ON", "YES"):
        return
    from huggingface_hub.constants import HF_HUB_CACHE

    paths = dict.fromkeys(str(part.metadata.dataset["path"]) for task in tasks for part in _parts(task))
    missing = [
        path
        for path in paths
        if not Path(path).is_dir() and not (Path(HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}").is_dir()
    ]
    if missing:
        raise InputError(
            f"suite {name!r} needs {len(missing)} data sets that are not on this machine ({missing[0]!r} first) and "
            "HF_HUB_OFFLINE=1 forbids fetching them: unset it, or choose the suite 'offline'"
        )


def _parts(task: Any) -> list[Any]:
    return list(getattr(task.metadata, "tasks", None) or [task])


def run_tasks(model: MTEBEncoder, tasks_fn: TasksFn, folder: str | Path, *, log: Log | None = None) -> list[TaskScore]:
    """Evaluates a model on fresh tasks; finished ones are read from `folder`, failed ones reported and passed over.

    Args:
        model: one name per model and seed.
        tasks_fn: makes new task objects (Suite.tasks): clustering tasks change when they are used.
        folder: of mteb's results; may be shared by models and suites.
        log: gets one line per task.

    Returns:
        One TaskScore per task, in order; `error` is set where there is no score.
    """
    tasks = list(tasks_fn())
    scores = []
    for number, task in enumerate(tasks, 1):
        score = _run_one(model, task, Path(folder))
        if log is not None:
            outcome = f"{score.metric} {score.score:.4f}" if score.score is not None else f"failed: {score.error}"
            log.line(f"  {model.name} {number}/{len(tasks)} {score.task}: {outcome} ({score.seconds:.1f} s)")
        scores.append(score)
    return scores


def _run_one(model: MTEBEncoder, task: Any, folder: Path) -> TaskScore:
    import mteb
    from mteb.cache import ResultCache
    from threadpoolctl import threadpool_limits

    name, kind, metric = task.metadata.name, str(task.metadata.type), task.metadata.main_score
    cache = ResultCache(folder)
    _drop_cut_result(cache.get_task_result_path(name, model.mteb_model_meta))
    try:
        with _quiet(), threadpool_limits(limits=getattr(task, "scoring_threads", None)):
            mteb.evaluate(
                model,
                task,
                cache=cache,
                overwrite_strategy="only-missing",
                encode_kwargs={"batch_size": 256, "show_progress_bar": False},
                show_progress_bar=False,
                co2_tracker=False,
            )
        # always from the file: it holds six decimals, and a resumed run must give the same numbers
        result = cache.load_task_result(name, model.mteb_model_meta, raise_if_not_found=True)
        assert result is not None
        score = float(result.get_score())
        if not np.isfinite(score):
            raise FloatingPointError(f"{metric} is {score}")
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        first_line = (str(error).strip() or "no message").splitlines()[0]
        return TaskScore(name, kind, metric, None, 0.0, f"{type(error).__name__}: {first_line}"[:300])
    return TaskScore(name, kind, metric, score, float(result.evaluation_time or 0.0))


def _drop_cut_result(path: Path) -> None:
    """A result file that a killed process left half written is removed, so that its task runs again."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except ValueError:
        path.unlink()


@contextmanager
def _quiet() -> Any:
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


def means(scores: Iterable[TaskScore], expected: Sequence[str]) -> dict[str, Any]:
    """Means over tasks and over task types (each type's own mean counts once), 0-1.

    Args:
        scores: results of one model.
        expected: names of all tasks that belong in the mean.

    Returns:
        {"by_task": mean, "by_type": mean of the types' means, "types": {type: mean}}.

    Raises:
        InputError: names every task without a score: a mean over the others would be another number.
    """
    found = {s.task: s for s in scores if s.score is not None}
    missing = [name for name in expected if name not in found]
    if missing or not expected:
        raise InputError(f"no mean over {len(expected)} tasks: no score for {', '.join(missing) or 'any of them'}")
    by_type: dict[str, list[float]] = {}
    for name in expected:
        score = found[name].score
        assert score is not None
        by_type.setdefault(found[name].type, []).append(score)
    types = {kind: float(np.mean(values)) for kind, values in by_type.items()}
    return {
        "by_task": float(np.mean([v for values in by_type.values() for v in values])),
        "by_type": float(np.mean(list(types.values()))),
        "types": types,
    }


def difference_table(
    base: Mapping[int, Sequence[TaskScore]], reasoning: Mapping[int, Sequence[TaskScore]], tasks: Sequence[str]
) -> np.ndarray:
    """Differences reasoning - base in points (T, S) for evaluation/statistics, paired by task and seed.

    Args:
        base, reasoning: seed -> scores of that seed's model; the same seeds.
        tasks: row order.

    Raises:
        InputError: seeds that differ, or a missing score (named).
    """
    if sorted(base) != sorted(reasoning) or not base:
        raise InputError(f"base has seeds {sorted(base)} and reasoning {sorted(reasoning)}: they must be the same")
    columns = []
    for seed in sorted(base):
        pair = []
        for side, scores in (("base", base[seed]), ("reasoning", reasoning[seed])):
            found = {s.task: s.score for s in scores if s.score is not None}
            missing = [task for task in tasks if task not in found]
            if missing:
                raise InputError(f"{side} with seed {seed} has no score for {', '.join(missing)}")
            pair.append(np.array([found[task] for task in tasks], np.float64))
        columns.append(100 * (pair[1] - pair[0]))
    return np.stack(columns, axis=1)
