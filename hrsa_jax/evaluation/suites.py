"""Suites by name: lists of mteb tasks, made anew for every model.

Data comes from the hub, from its cache, or from a folder that holds copies of the hub's data sets
(`data_folder/<org>/<name>`); the offline suite needs none of them.
"""

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hrsa_jax.evaluation.offline_data import Size
from hrsa_jax.evaluation.offline_tasks import offline_tasks
from hrsa_jax.evaluation.runner import TaskScore, TasksFn, read_scores, run_tasks
from hrsa_jax.evaluation.tables import difference_table, means
from hrsa_jax.runtime.errors import InputError

__all__ = [
    "BENCHMARKS",
    "LABELS",
    "OFFLINE",
    "QA_TASKS",
    "SUITES",
    "Suite",
    "TaskScore",
    "difference_table",
    "means",
    "read_scores",
    "run_tasks",
    "suite",
]

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
    data_folder: str | Path | None = None,
) -> Suite:
    """A suite by name: one of SUITES, any other benchmark of mteb, or a single mteb task.

    Args:
        name: e.g. "offline", "MTEB(eng, v2)", "qa", "SciFact".
        folder: where the offline suite's data sets go (needed for "offline" only).
        size, seed: of the offline suite, see offline_tasks.
        names: only these tasks of the suite; None is all.
        data_folder: copies of the hub's data sets, as `<org>/<name>` below it; what is not there comes from the hub.
            `datasets` remembers local sets by name: after changing rows, empty its cache.

    Raises:
        InputError: an unknown name (with the nearest valid one); data that is not on this machine while
            HF_HUB_OFFLINE=1.
    """
    if name == OFFLINE:
        if folder is None:
            raise InputError("the offline suite needs a folder for its data sets")
        return Suite(name, LABELS[name], lambda: offline_tasks(folder, names=names, size=size, seed=seed))
    everything = _hub_tasks(name)
    known = [task.metadata.name for task in everything()]
    for wanted in names or ():
        if wanted not in known:
            near = difflib.get_close_matches(wanted, known, 1, 0.4)
            raise InputError(f"suite {name!r} has no task {wanted!r}{f': did you mean {near[0]!r}?' if near else ''}")

    def make() -> list[Any]:
        chosen = [task for task in everything() if names is None or task.metadata.name in names]
        return chosen if data_folder is None else [_localised(task, Path(data_folder)) for task in chosen]

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
    try:
        mteb.get_task(name)  # superseded ones too
    except KeyError:
        known = sorted({t.metadata.name for t in mteb.get_tasks(exclude_superseded=False)})
        near = difflib.get_close_matches(name, [*SUITES, *sorted(benchmarks), *known], 1, 0.4)
        raise InputError(
            f"there is no suite, benchmark or mteb task called {name!r}{f': did you mean {near[0]!r}?' if near else ''}"
        ) from None
    return lambda: [mteb.get_task(name)]


def _fresh(tasks: Iterable[Any]) -> list[Any]:
    """New objects of a benchmark's tasks with the benchmark's own choice of subsets and splits."""
    copies = []
    for task in tasks:
        copy = type(task)(seed=task.seed)
        copy.hf_subsets = list(task.hf_subsets)
        copy._eval_splits = task._eval_splits
        copies.append(copy)
    return copies


def _localised(task: Any, data_folder: Path) -> Any:
    """The task (and the parts of an aggregate) reading its data set from `data_folder` where a copy is there."""
    for part in _parts(task):
        dataset = part.metadata.dataset
        local = data_folder / str(dataset["path"])
        if local.is_dir():
            part.metadata = part.metadata.model_copy(update={"dataset": {**dataset, "path": str(local.resolve())}})
    return task


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
            "HF_HUB_OFFLINE=1 forbids fetching them: unset it, name a folder of copies, or choose the suite 'offline'"
        )


def _parts(task: Any) -> list[Any]:
    return list(getattr(task.metadata, "tasks", None) or [task])
