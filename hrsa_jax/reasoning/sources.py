"""Where problems come from: generated families, JSON lines, and GSM8K or MATH from the hub or a local copy."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hrsa_jax.data.reasoning_gym_loader import is_held_out
from hrsa_jax.data.sources import json_rows
from hrsa_jax.reasoning.answers import marked_answer
from hrsa_jax.reasoning.tasks import FAMILIES, Problem, Split, make_problems
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import counted

_MAX_LINE_BYTES = 1 << 20
_CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K's calculator notes, which are not part of the solution


class _HubSet(NamedTuple):
    """A data set of the hub: its name, subset, and how a row becomes (question, solution, answer)."""

    name: str
    subset: str | None
    read: Callable[[Mapping[str, Any]], tuple[str, str, str | None]]


def _gsm8k(row: Mapping[str, Any]) -> tuple[str, str, str | None]:
    return row["question"], _CALCULATOR.sub("", row["answer"]), marked_answer(row["answer"])


def _math(row: Mapping[str, Any]) -> tuple[str, str, str | None]:
    return row["problem"], row["solution"], marked_answer(row["solution"])


HUB_SETS = {
    "gsm8k": _HubSet("openai/gsm8k", "main", _gsm8k),
    "math": _HubSet("DigitalLearningGmbH/MATH-lighteval", None, _math),
}


def load_problems(source: str, n: int, *, seed: int, split: Split = "train") -> list[Problem]:
    """n problems of a source, a pure function of the arguments; training and held-out problems never overlap.

    Args:
        source: a generated family (tasks.FAMILIES); a file ending in .jsonl, whose held-out third is chosen by the
            hash of the question; "gsm8k" or "math" from the hub, or "gsm8k:FOLDER" for a local copy in the hub's
            layout, whose held-out problems are its test split.

    Raises:
        InputError: an unknown or unreadable source, a broken row (named), or fewer than n problems.
    """
    if source in FAMILIES:
        return make_problems(source, n, seed=seed, split=split)
    if split == "unseen":
        raise InputError(f"{source} has no templates, so there is no unseen split: use held_out")
    kind, _, folder = source.partition(":")
    if source.endswith(".jsonl"):
        found = [p for p in read_problems(source) if is_held_out(p.question) == (split == "held_out")]
    elif kind in HUB_SETS:
        found = _read_hub(kind, folder or None, split)
    else:
        known = ", ".join([*sorted(FAMILIES), *HUB_SETS])
        raise InputError(f"unknown source of problems {source!r}: give a .jsonl file or one of {known}")
    if len(found) < n:
        raise InputError(
            f"the {split} side of {source} has {counted(len(found), 'problem')}, {n} asked for: ask for less"
        )
    order = np.random.default_rng(seed).permutation(len(found))
    return [found[i] for i in sorted(order[:n])]


def read_problems(path: str | Path) -> list[Problem]:
    """Problems of a JSON-lines file: {"question", "solution", "answer"}, texts; the answer may be a number.

    A solution may be missing (it is then the answer), and an answer too where the solution marks it (`#### 12`).

    Raises:
        InputError: one sentence with file:line for the first row that is broken, and for a question that comes twice.
    """
    found: list[Problem] = []
    first: dict[str, int] = {}
    for where, number, _, row in json_rows(Path(path), _MAX_LINE_BYTES):
        question, solution, answer = (row.get(name) for name in ("question", "solution", "answer"))
        if isinstance(answer, int | float) and not isinstance(answer, bool):
            answer = str(answer)
        if answer is None and isinstance(solution, str):
            answer = marked_answer(solution)
        if solution is None:
            solution = answer
        texts: dict[str, Any] = {"question": question, "answer": answer, "solution": solution}
        for name, value in texts.items():
            if not isinstance(value, str) or not value.strip():
                raise InputError(f"{where}: {name} is {value!r}, not a text; give question, solution and answer.")
        problem = Problem(**texts, family=Path(path).stem, entry={})
        if problem.question in first:
            before = first[problem.question]
            raise InputError(f"{where}: the question of line {before} comes again; questions must differ.")
        first[problem.question] = number
        found.append(problem)
    if not found:
        raise InputError(f"{path} holds no rows; expected a JSON object a line with question, solution and answer.")
    return found


def _read_hub(kind: str, folder: str | None, split: Split) -> list[Problem]:
    import datasets

    source = HUB_SETS[kind]
    name, part = folder or source.name, {"train": "train", "held_out": "test"}[split]
    try:
        rows = datasets.load_dataset(name, source.subset, split=part)
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{kind}: data set {name} (split {part}) cannot be read ({why}): check the network, or give a local copy "
            f"as {kind}:FOLDER"
        ) from error
    found: dict[str, Problem] = {}
    for number, row in enumerate(rows):
        try:
            question, solution, answer = source.read(row)
        except KeyError as error:
            raise InputError(f"{kind}: {name} has no column {error}; it has {', '.join(row)}") from error
        if answer is None:
            raise InputError(f"{kind}: {name}[{part}] row {number} marks no answer (#### or \\boxed): remove the row")
        found.setdefault(question, Problem(question, solution, answer, kind, {}))
    return list(found.values())
