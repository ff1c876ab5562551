"""The pairs of a conversion: read, checked against the evaluation texts, given negatives, described."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hrsa_jax.data.corpora import training_pairs
from hrsa_jax.data.leaks import find_overlap
from hrsa_jax.data.negatives import add_negatives
from hrsa_jax.data.sources import Pair, by_dataset, open_hub, open_jsonl
from hrsa_jax.evaluation.baselines import HashedBagOfWords
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import RunLog, counted


@dataclass(frozen=True)
class DataFile:
    """One data set: a JSON-lines file (`path`, {"query", "pos", "neg"}), or a hub data set (`hub`) by column names.

    name: of the data set (the file's stem, the hub's name). instruction: for queries that bring none of their own.
    """

    path: str = ""
    hub: str = ""
    name: str | None = None
    instruction: str = ""
    query_column: str = "query"
    positive_column: str = "pos"
    negative_column: str | None = None
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if bool(self.path) == bool(self.hub):
            raise InputError(f"a training file has path={self.path!r} and hub={self.hub!r}: give one of the two")

    def open(self) -> Sequence[Pair]:
        """Its rows, read when asked for."""
        if self.path:
            rows = open_jsonl(self.path, dataset=self.name, instruction=self.instruction)
            return rows if self.limit is None else rows[: self.limit]
        columns = {"query": self.query_column, "pos": self.positive_column}
        if self.negative_column:
            columns["neg"] = self.negative_column
        return open_hub(
            self.hub,
            columns=columns,
            split=self.split,
            subset=self.subset,
            revision=self.revision,
            instruction=self.instruction,
            limit=self.limit,
            dataset=self.name,
        )


@dataclass(frozen=True)
class TrainingData:
    """pairs: data set -> rows. fingerprint: of every row. facts: JSON values, shown and saved before step 0."""

    pairs: Mapping[str, Sequence[Pair]]
    fingerprint: str
    facts: dict[str, Any]


def open_files(folder: str, files: Sequence[DataFile]) -> dict[str, Sequence[Pair]]:
    """Data set -> rows of every file; relative paths are below `folder`.

    Raises:
        InputError: two files of one name, or what the readers refuse.
    """
    found: dict[str, Sequence[Pair]] = {}
    for file in files:
        if file.path and folder and not Path(file.path).is_absolute():
            file = replace(file, path=str(Path(folder) / file.path))
        if file.path and not Path(file.path).exists():
            raise InputError(f"training file {file.path} does not exist: name yours by the settings folder and files")
        rows = file.open()
        name = file.name or (Path(file.path).stem if file.path else file.hub)
        if name in found:
            raise InputError(f"two training files are called {name!r}: give one of them another name")
        found[name] = rows
    return found


def offline_pairs(count: int, sources: Sequence[str], hard_negatives: int) -> dict[str, Sequence[Pair]]:
    """Pairs from installed packages, with hard negatives chosen by shared words."""
    pairs = training_pairs(count, seed=0, sources=sources)
    if hard_negatives:
        pairs = add_negatives(pairs, HashedBagOfWords().encode, count=hard_negatives)
    return by_dataset(pairs)


def describe(
    pairs: Mapping[str, Sequence[Pair]],
    test_texts: Mapping[str, Iterable[str]],
    *,
    allow_overlap: bool,
    log: RunLog,
) -> TrainingData:
    """Reads every row once: its fingerprint, and what training and test texts have in common.

    Raises:
        InputError: an overlap that is not allowed.
    """
    compared = 0
    found: list[tuple[str, str, str]] = []
    if test_texts:
        texts = {task: list(part) for task, part in test_texts.items()}
        for rows in pairs.values():
            overlap = find_overlap(rows, texts)
            if overlap.found and not allow_overlap:
                raise overlap.refusal()
            compared, found = compared + overlap.compared, [*found, *overlap.found]
        log.line(
            f"  {counted(compared, 'training text')} compared with {counted(len(texts), 'task')}: "
            f"{len(found)} in common"
        )
    facts = {
        "overlap": {
            "compared": compared,
            "tasks": sorted(test_texts),
            "found": len(found),
            "examples": [{"task": task, "dataset": dataset, "text": text[:80]} for task, dataset, text in found[:10]],
        }
    }
    return TrainingData(pairs, rows_fingerprint(pairs), facts)


def rows_fingerprint(pairs: Mapping[str, Sequence[Pair]]) -> str:
    """16 hex digits over every field of every row, data set by data set."""
    digest = hashlib.sha256()
    for name, rows in pairs.items():
        digest.update(name.encode() + b"\n")
        for pair in rows:
            digest.update(json.dumps(asdict(pair), sort_keys=True).encode())
    return digest.hexdigest()[:16]
