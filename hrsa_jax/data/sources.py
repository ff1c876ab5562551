"""Training pairs: the `Pair` record and its readers (JSON lines, Hugging Face data sets by column names).

Readers come in two forms: `read_*` gives a list, `open_*` a sequence that reads a row again whenever it is asked for
(8 bytes of memory a row), for files of millions of rows. Both check every row first.
"""

import json
import math
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from hrsa_jax.runtime.errors import InputError

MAX_LINE_BYTES = 1 << 20
_EXTRA = ("pos_ids", "neg_ids", "pos_scores", "neg_scores")


@dataclass(frozen=True)
class Pair:
    """One row of contrastive training data.

    `query` is the bare text; `instruction` is put in front of it by a template (data/prompts.py) and never
    pooled. `positives` holds at least one passage; `negatives` (hard negatives) may be empty. `dataset` names
    the data set the row belongs to: a batch never mixes two of them. Ids (of passages; equal ids are one passage) and
    scores (of a teacher, each passage against the query) are empty or as many as the passages.
    """

    query: str
    instruction: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    dataset: str = "pairs"
    positive_ids: tuple[str, ...] = ()
    negative_ids: tuple[str, ...] = ()
    positive_scores: tuple[float, ...] = ()
    negative_scores: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for passages in ("positive", "negative"):
            texts = getattr(self, f"{passages}s")
            for field in ("ids", "scores"):
                found = getattr(self, f"{passages}_{field}")
                if found and len(found) != len(texts):
                    raise InputError(
                        f"A pair has {len(texts)} {passages}s but {len(found)} {passages} {field}; give one for each."
                    )


class LazyPairs(Sequence[Pair]):
    """Rows that are read when they are asked for: `read(i)` gives row i."""

    def __init__(self, length: int, read: Callable[[int], Pair]):
        self._length, self._read = length, read

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Pair: ...

    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...

    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        if isinstance(index, slice):
            return [self._read(i) for i in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(f"row {index} of {self._length}")
        return self._read(index % self._length)


def by_dataset(pairs: Sequence[Pair] | Mapping[str, Sequence[Pair]]) -> dict[str, Sequence[Pair]]:
    """Data set -> its rows, in order of first appearance; a mapping is taken as it is and read no further."""
    if isinstance(pairs, Mapping):
        return {str(name): rows for name, rows in pairs.items() if len(rows)}
    rows: dict[str, list[Pair]] = {}
    for pair in pairs:
        rows.setdefault(pair.dataset, []).append(pair)
    return dict(rows)


def read_jsonl(
    path: str | Path, *, dataset: str | None = None, instruction: str = "", max_line_bytes: int = MAX_LINE_BYTES
) -> list[Pair]:
    """`open_jsonl` as a list."""
    return list(open_jsonl(path, dataset=dataset, instruction=instruction, max_line_bytes=max_line_bytes))


def open_jsonl(
    path: str | Path, *, dataset: str | None = None, instruction: str = "", max_line_bytes: int = MAX_LINE_BYTES
) -> Sequence[Pair]:
    """Pairs of a JSON-lines file: `{"query": text | [instruction, text], "pos": [..], "neg": [..]}`.

    Args:
      path: the file, UTF-8. `neg` may be missing, and so may `pos_ids`, `neg_ids`, `pos_scores` and `neg_scores` (one
        for each passage); other fields are ignored, but no value of `id` may come twice.
      dataset: the name all rows get; the file's stem when None.
      instruction: for rows whose query is a bare text.
      max_line_bytes: longer lines are refused (a line that long is nearly always a broken file).

    Raises:
      InputError: one sentence with `file:line` for the first line that is cut, not UTF-8, too long, holds a
        NUL byte, an empty text or a field of the wrong type; also for a file that is missing or has no rows.
    """
    path = Path(path)
    name = dataset or path.stem
    places, numbers, line_of_id = array("q"), array("q"), dict[str, int]()
    for where, number, place, row in json_rows(path, max_line_bytes):
        if "id" in row:
            key = json.dumps(row["id"])
            if key in line_of_id:
                raise InputError(f"{where}: id {key} was used in line {line_of_id[key]} already; ids must differ.")
            line_of_id[key] = number
        _pair_from_row(row, where, name, instruction)
        places.append(place)
        numbers.append(number)
    if not places:
        raise InputError(f"{path} holds no rows; expected one JSON object a line with 'query' and 'pos'.")

    def read(index: int) -> Pair:
        with path.open("rb") as file:
            file.seek(places[index])
            line = file.readline(max_line_bytes + 1).decode("utf-8")
        where = f"{path}:{numbers[index]}"
        return _pair_from_row(_json_object(line, where), where, name, instruction)

    return LazyPairs(len(places), read)


def write_jsonl(path: str | Path, pairs: Iterable[Pair]) -> int:
    """Writes pairs in the form that `open_jsonl` reads; the file appears whole or not at all. Returns their number."""
    path, count = Path(path), 0
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for pair in pairs:
            row: dict[str, Any] = {
                "query": [pair.instruction, pair.query] if pair.instruction else pair.query,
                "pos": pair.positives,
                "neg": pair.negatives,
                "pos_ids": pair.positive_ids,
                "neg_ids": pair.negative_ids,
                "pos_scores": pair.positive_scores,
                "neg_scores": pair.negative_scores,
            }
            file.write(json.dumps({key: value for key, value in row.items() if value}, ensure_ascii=False) + "\n")
            count += 1
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return count


def read_hub(name: str, *, columns: Mapping[str, str], limit: int | None = None, **options: Any) -> list[Pair]:
    """`open_hub` as a list."""
    return list(open_hub(name, columns=columns, limit=limit, **options))


def open_hub(
    name: str,
    *,
    columns: Mapping[str, str],
    split: str = "train",
    subset: str | None = None,
    revision: str | None = None,
    instruction: str = "",
    limit: int | None = None,
    dataset: str | None = None,
) -> Sequence[Pair]:
    """Pairs of a Hugging Face data set (hub name or local folder) by column names.

    Args:
      name: what `datasets.load_dataset` takes.
      columns: maps "query", "pos" and optionally "neg" (and the ids and scores of `open_jsonl`) to the data set's
        columns, which may hold a text or a list of texts.
      limit: reads the first so many rows only.
      dataset: the name all rows get; the hub's name when None.

    Raises:
      InputError: when the data set cannot be read, a column is missing, or a row is malformed (row named).
    """
    import datasets

    if {"query", "pos"} - set(columns) or set(columns) - {"query", "pos", "neg", *_EXTRA}:
        raise InputError(f"Column mapping for {name} has {sorted(columns)}; it needs query and pos, and may have neg.")
    try:
        rows = datasets.load_dataset(name, subset, split=split, revision=revision)
    except (OSError, ValueError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"Data set {name} (split {split}) cannot be read: {first_line}.") from error
    absent = [column for column in columns.values() if column not in rows.column_names]
    if absent:
        raise InputError(f"Data set {name} has no column {absent[0]!r}; it has {', '.join(rows.column_names)}.")
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    rows = rows.select_columns(list(dict.fromkeys(columns.values())))
    label = name if subset is None else f"{name}/{subset}"
    settings: dict[str, str] = {"dataset": dataset or label, "instruction": instruction}

    def read(index: int) -> Pair:
        return _pair_from_columns(rows[index], columns, f"{label}[{split}] row {index}", **settings)

    for _ in pairs_from_rows(rows, columns, where=f"{label}[{split}]", **settings):
        pass
    return LazyPairs(len(rows), read)


def pairs_from_rows(
    rows: Iterable[Mapping[str, Any]],
    columns: Mapping[str, str],
    *,
    where: str,
    dataset: str,
    instruction: str = "",
) -> Iterator[Pair]:
    """Maps table rows onto pairs (`columns` as in `open_hub`); InputError names `where` and the row."""
    for number, row in enumerate(rows):
        yield _pair_from_columns(row, columns, f"{where} row {number}", dataset=dataset, instruction=instruction)


def _pair_from_columns(
    row: Mapping[str, Any], columns: Mapping[str, str], where: str, *, dataset: str, instruction: str
) -> Pair:
    mapped = {field: row[column] for field, column in columns.items()}
    for field in set(mapped) - {"query"}:
        if isinstance(mapped[field], str | float | int):
            mapped[field] = [mapped[field]]
    return _pair_from_row(mapped, where, dataset, instruction)


def json_rows(path: Path, max_line_bytes: int) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
    """Yields (file:line, line number, byte where it begins, object) for the lines of a file that are not blank."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give the path of a JSON-lines file.") from error
    with file:
        number, after = 0, 0
        while line := file.readline(max_line_bytes + 1):
            number, place = number + 1, after
            after += len(line)
            where = f"{path}:{number}"
            if len(line) > max_line_bytes:
                raise InputError(
                    f"{where}: the line is longer than {max_line_bytes} bytes; split or shorten its texts."
                )
            if b"\0" in line:
                raise InputError(f"{where}: the line holds a NUL byte; the file is damaged or is not JSON lines.")
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{where}: byte {error.start + 1} is not valid UTF-8; convert the file to UTF-8."
                ) from error
            if not text.strip():
                continue
            yield where, number, place, _json_object(text, where)


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        cut = "is cut off" if error.pos >= len(text.rstrip()) - 1 or not text.endswith("\n") else "is not valid JSON"
        raise InputError(f"{where}: the line {cut} ({error.msg} at column {error.colno}); repair it.") from error
    except RecursionError as error:
        raise InputError(f"{where}: the JSON is nested too deeply; expected one flat object a line.") from error
    except ValueError as error:  # a whole number of thousands of digits
        raise InputError(f"{where}: the line holds a number that is too long; repair it.") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: found a JSON {type(row).__name__}; expected an object with 'query' and 'pos'.")
    return row


def _pair_from_row(row: Mapping[str, Any], where: str, dataset: str, instruction: str) -> Pair:
    query = row.get("query")
    if isinstance(query, Sequence) and not isinstance(query, str):
        if len(query) != 2:
            raise InputError(f"{where}: 'query' is a list of {len(query)}; expected a text or [instruction, text].")
        instruction = _text(query[0], where, "query[0]", allow_empty=True)
        query = query[1]
    positives = _texts(row.get("pos"), where, "pos", required=True)
    negatives = _texts(row.get("neg"), where, "neg", required=False)
    return Pair(
        query=_text(query, where, "query"),
        instruction=instruction,
        positives=positives,
        negatives=negatives,
        dataset=dataset,
        positive_ids=_ids(row, where, "pos_ids", len(positives)),
        negative_ids=_ids(row, where, "neg_ids", len(negatives)),
        positive_scores=_scores(row, where, "pos_scores", len(positives)),
        negative_scores=_scores(row, where, "neg_scores", len(negatives)),
    )


def _ids(row: Mapping[str, Any], where: str, field: str, count: int) -> tuple[str, ...]:
    return tuple(map(str, _one_each(row, where, field, count, (str, int))))


def _scores(row: Mapping[str, Any], where: str, field: str, count: int) -> tuple[float, ...]:
    given = _one_each(row, where, field, count, (int, float))
    try:
        values = tuple(map(float, given))
    except OverflowError:
        values = (math.inf,)
    if not all(map(math.isfinite, values)):
        raise InputError(f"{where}: '{field}' holds {values}; every score must be a finite number.")
    return values


def _one_each(row: Mapping[str, Any], where: str, field: str, count: int, kinds: tuple[type, ...]) -> Sequence[Any]:
    """The values of an optional field that has one value for each passage."""
    values = row.get(field)
    if values is None or values == []:
        return ()
    if not isinstance(values, list | tuple) or len(values) != count:
        raise InputError(f"{where}: '{field}' does not hold one value for each of the {count} passages; repair it.")
    wrong = [value for value in values if not isinstance(value, kinds) or isinstance(value, bool)]
    if wrong:
        raise InputError(f"{where}: '{field}' holds {wrong[0]!r}, a {type(wrong[0]).__name__}; repair it.")
    return values


def _texts(value: Any, where: str, field: str, *, required: bool) -> tuple[str, ...]:
    if value is None and not required:
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        found = "nothing" if value is None else f"a {type(value).__name__}"
        raise InputError(f"{where}: '{field}' holds {found}; expected a list of texts.")
    if required and not value:
        raise InputError(f"{where}: '{field}' is an empty list; every row needs at least one positive passage.")
    return tuple(_text(item, where, f"{field}[{index}]") for index, item in enumerate(value))


def _text(value: Any, where: str, field: str, *, allow_empty: bool = False) -> str:
    if not isinstance(value, str):
        found = "nothing" if value is None else f"a {type(value).__name__}"
        raise InputError(f"{where}: '{field}' holds {found}; expected a text.")
    if not allow_empty and not value.strip():
        raise InputError(f"{where}: '{field}' is an empty text; fill it in or drop the row.")
    if "\0" in value:
        raise InputError(f"{where}: '{field}' holds a NUL character; the file is damaged.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: '{field}' holds a lone surrogate, which is not valid text; repair it.") from error
    return value
