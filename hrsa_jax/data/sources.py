"""Training pairs: the `Pair` record and its readers (JSON lines, Hugging Face data sets by column names)."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hrsa_jax.runtime.errors import InputError

MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True)
class Pair:
    """One row of contrastive training data.

    `query` is the bare text; `instruction` is put in front of it by a template (data/prompts.py) and never
    pooled. `positives` holds at least one passage; `negatives` (hard negatives) may be empty. `dataset` names
    the data set the row belongs to: a batch never mixes two of them.
    """

    query: str
    instruction: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    dataset: str = "pairs"


def read_jsonl(
    path: str | Path,
    *,
    dataset: str | None = None,
    instruction: str = "",
    max_line_bytes: int = MAX_LINE_BYTES,
) -> list[Pair]:
    """Reads pairs from a JSON-lines file: `{"query": text | [instruction, text], "pos": [..], "neg": [..]}`.

    Args:
      path: the file, UTF-8. `neg` may be missing; other fields are ignored, but no value of `id` may come
        twice.
      dataset: the name all rows get; the file's stem when None.
      instruction: for rows whose query is a bare text.
      max_line_bytes: longer lines are refused (a line that long is nearly always a broken file).

    Raises:
      InputError: one sentence with `file:line` for the first line that is cut, not UTF-8, too long, holds a
        NUL byte, an empty text or a field of the wrong type; also for a file that is missing or has no rows.
    """
    path = Path(path)
    name = dataset or path.stem
    pairs, first_line_of_id = [], dict[str, int]()
    for where, number, row in _json_rows(path, max_line_bytes):
        if "id" in row:
            key = json.dumps(row["id"])
            if key in first_line_of_id:
                raise InputError(
                    f"{where}: id {key} was used in line {first_line_of_id[key]} already; ids must differ."
                )
            first_line_of_id[key] = number
        pairs.append(_pair_from_row(row, where, name, instruction))
    if not pairs:
        raise InputError(f"{path} holds no rows; expected one JSON object a line with 'query' and 'pos'.")
    return pairs


def read_hub(
    name: str,
    *,
    columns: Mapping[str, str],
    split: str = "train",
    subset: str | None = None,
    revision: str | None = None,
    instruction: str = "",
    limit: int | None = None,
) -> list[Pair]:
    """Reads pairs from a Hugging Face data set (hub name or local folder) by column names.

    Args:
      name: what `datasets.load_dataset` takes.
      columns: maps "query", "pos" and optionally "neg" to the data set's columns, which may hold a text or a
        list of texts.
      limit: reads the first so many rows only.

    Raises:
      InputError: when the data set cannot be read, a column is missing, or a row is malformed (row named).
    """
    import datasets

    missing = {"query", "pos"} - set(columns)
    if missing or set(columns) - {"query", "pos", "neg"}:
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
    label = name if subset is None else f"{name}/{subset}"
    return list(pairs_from_rows(rows, columns, where=f"{label}[{split}]", dataset=label, instruction=instruction))


def pairs_from_rows(
    rows: Iterable[Mapping[str, Any]],
    columns: Mapping[str, str],
    *,
    where: str,
    dataset: str,
    instruction: str = "",
) -> Iterator[Pair]:
    """Maps table rows onto pairs (`columns` as in `read_hub`); InputError names `where` and the row."""
    for number, row in enumerate(rows):
        mapped = {field: row[column] for field, column in columns.items()}
        for field in ("pos", "neg"):
            if isinstance(mapped.get(field), str):
                mapped[field] = [mapped[field]]
        yield _pair_from_row(mapped, f"{where} row {number}", dataset, instruction)


def _json_rows(path: Path, max_line_bytes: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yields (file:line, line number, object) for the lines of a file that are not blank."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give the path of a JSON-lines file.") from error
    with file:
        number = 0
        while line := file.readline(max_line_bytes + 1):
            number += 1
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
            yield where, number, _json_object(text, where)


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        cut = "is cut off" if error.pos >= len(text.rstrip()) - 1 or not text.endswith("\n") else "is not valid JSON"
        raise InputError(f"{where}: the line {cut} ({error.msg} at column {error.colno}); repair it.") from error
    except RecursionError as error:
        raise InputError(f"{where}: the JSON is nested too deeply; expected one flat object a line.") from error
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
    return Pair(
        query=_text(query, where, "query"),
        instruction=instruction,
        positives=_texts(row.get("pos"), where, "pos", required=True),
        negatives=_texts(row.get("neg"), where, "neg", required=False),
        dataset=dataset,
    )


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
