"""Tables of scores: means that never hide a missing task, differences, breakdowns, published scores beside ours."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hrsa_jax.evaluation.runner import TaskScore
from hrsa_jax.runtime.errors import InputError


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


def language_means(scores: Iterable[TaskScore]) -> dict[str, tuple[float, int]]:
    """Mean score and number of subsets by language (ISO 639-3), from tasks whose subsets are languages.

    A translation task counts for both its languages, English apart: all of them have it.
    """
    found: dict[str, list[float]] = {}
    for score in scores:
        for _, languages, value in score.languages:
            codes = dict.fromkeys(code.split("-")[0] for code in languages)
            for code in codes if len(codes) == 1 else [c for c in codes if c != "eng"]:
                found.setdefault(code, []).append(value)
    return {code: (float(np.mean(values)), len(values)) for code, values in sorted(found.items())}


def read_published(path: str | Path) -> dict[str, dict[str, float]]:
    """Published scores {model: {task: score 0-1}} from a file; whole files in percent are brought to 0-1.

    .json: {model: {task: score}}. .csv: a column "model" and a column per task, or columns model, task, score.

    Raises:
        InputError: no such file, another format, or a value that is no score.
    """
    path = Path(path)
    if path.suffix not in (".json", ".csv"):
        raise InputError(f"published scores {str(path)!r}: give a .json or .csv file")
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = _published_json(text) if path.suffix == ".json" else _published_csv(text)
        table: dict[str, dict[str, float]] = {}
        for model, task, value in rows:
            table.setdefault(model, {})[task] = float(value)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"published scores {str(path)!r} cannot be read ({error}): check the path") from None
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError) as error:
        raise InputError(
            f"published scores {str(path)!r} are not in a known form ({error}): give {{model: {{task: score}}}} as "
            "JSON, or a CSV file with a column 'model' and a column per task"
        ) from None
    values = np.array([value for row in table.values() for value in row.values()])
    if not len(values) or not np.isfinite(values).all() or np.abs(values).max() > 100:
        raise InputError(
            f"published scores {str(path)!r} hold no scores between 0 and 1 (or 0 and 100): check the file"
        )
    scale = 100.0 if np.abs(values).max() > 1 else 1.0
    return {model: {task: value / scale for task, value in row.items()} for model, row in table.items()}


def _published_json(text: str) -> list[tuple[str, str, Any]]:
    return [(model, task, value) for model, row in json.loads(text).items() for task, value in row.items()]


def _published_csv(text: str) -> list[tuple[str, str, Any]]:
    lines = list(csv.DictReader(text.splitlines()))
    if lines and {"model", "task", "score"} <= set(lines[0]):
        return [(line["model"], line["task"], line["score"]) for line in lines]
    return [(line["model"], task, value) for line in lines for task, value in line.items() if task != "model" and value]


def comparison_table(
    ours: Mapping[str, Sequence[TaskScore]], published: Mapping[str, Mapping[str, float]], tasks: Sequence[str]
) -> str:
    """Scores in points, a row per task and a column per model; the last row is a mean, or says what it lacks.

    Args:
        ours: model -> its scores. published: model -> task -> score 0-1, shown behind ours with a star.
        tasks: rows.
    """
    columns: dict[str, dict[str, float]] = {
        name: {s.task: s.score for s in scores if s.score is not None} for name, scores in ours.items()
    }
    columns |= {f"{name} *": dict(row) for name, row in published.items()}
    table = [["task", *columns]]
    for task in tasks:
        table.append([task, *(f"{100 * column[task]:.2f}" if task in column else "-" for column in columns.values())])
    last = ["mean of all tasks"]
    for column in columns.values():
        missing = sum(task not in column for task in tasks)
        last.append(f"{missing} missing" if missing else f"{100 * np.mean([column[t] for t in tasks]):.2f}")
    table.append(last)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    return "\n".join([*lines, *(["* published scores, as given"] if published else [])])
