"""results.json, schema 1: read it, and refuse broken or foreign files in one sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hrsa_jax.runtime.errors import InputError

SCHEMA = 1
SECTIONS: dict[str, Any] = {
    "config": dict,
    "fingerprints": dict,
    "models": dict,
    "reasoning": dict,
    "training": dict,
    "benchmark": list,
    "null_effect": dict,
    "hrsa": dict,
    "realignment": dict,
    "realignment_index": dict,
    "noise_floor": dict,
    "trajectory": dict,
    "planted": list,
    "timings": dict,
    "provenance": dict,
    "warnings": list,
}
# Parts of an hrsa pair that are neither curves nor matrices.
PAIR_EXTRAS = ("facts", "notes", "refused")
_EVIDENCE = ("benchmark", "null_effect", "hrsa", "reasoning")


def read(path: str | Path) -> dict[str, Any]:
    """Read and validate a results.json.

    Args:
      path: the file, or a workdir that holds one.

    Returns:
      The results as plain Python objects; NaN and infinity literals become None (missing).

    Raises:
      InputError: the file is missing, unreadable, not JSON, or not schema 1.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "results.json"
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"There is no {file}: run the study first, or give the workdir of a finished one.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as text ({error}): give the results.json of a study.") from None
    try:
        results = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{file} is not valid JSON ({error}): it may be cut off, so run the study's command again to rewrite it."
        ) from None
    return validate(results, str(file))


def validate(results: Any, where: str = "results") -> dict[str, Any]:
    """Check the parts of schema 1 that the report relies on; absent sections are allowed and shown as missing.

    Args:
      results: the parsed file.
      where: how error messages name it.

    Returns:
      The same object.

    Raises:
      InputError: names the first part that is broken and what was expected.
    """
    if not isinstance(results, Mapping) or "schema" not in results:
        raise InputError(f'{where} has no "schema" field, so it is not a results.json of hrsa_jax: give one of its.')
    if results["schema"] != SCHEMA:
        raise InputError(
            f"{where} has schema {results['schema']!r} and this version reads schema {SCHEMA}: "
            "rebuild the report with the version that wrote the file."
        )
    for name, kind in SECTIONS.items():
        if results.get(name) is not None and not isinstance(results[name], kind):
            raise _broken(where, name, f"is {_kind(results[name])}", _NAMES[kind])
    if not any(results.get(name) for name in _EVIDENCE):
        raise InputError(f"{where} holds none of {', '.join(_EVIDENCE)}: the study did not get far enough to report.")
    for name in ("models", "training", "timings"):
        for key, entry in (results.get(name) or {}).items():
            if not isinstance(entry, Mapping):
                raise _broken(where, f"{name}.{key}", f"is {_kind(entry)}", "an object")
    _check_benchmark(results.get("benchmark") or [], where)
    _check_null_effect(results.get("null_effect") or {}, where)
    _check_reasoning(results.get("reasoning") or {}, where)
    for model, trace in (results.get("training") or {}).items():
        _check_columns(trace, ("step", "loss"), f"training.{model}", where)
    for pair, measures in (results.get("hrsa") or {}).items():
        _check_pair(pair, measures, where)
    for section in ("realignment", "realignment_index"):
        for measure, curve in (results.get(section) or {}).items():
            _check_curve(curve, f"{section}.{measure}", where)
    _check_floor(results.get("noise_floor") or {}, where)
    _check_trajectory(results.get("trajectory") or {}, where)
    for index, check in enumerate(results.get("planted") or []):
        if not isinstance(check, Mapping) or not isinstance(check.get("found"), Mapping | None):
            raise _broken(where, f"planted[{index}]", f"is {_kind(check)}", "an object with what was found")
    return results  # type: ignore[return-value]


_NAMES: dict[Any, str] = {dict: "an object", list: "a list"}


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    for kind, name in ((bool, "a boolean"), (Mapping, "an object"), (str, "a string"), (Sequence, "a list")):
        if isinstance(value, kind):  # type: ignore[arg-type]
            return name
    return "a number" if isinstance(value, int | float) else type(value).__name__


def _broken(where: str, part: str, found: str, expected: str) -> InputError:
    return InputError(f"{where}: {part} {found} and should be {expected}; rebuild the file by running the study again.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_number(value: Any, part: str, where: str, *, optional: bool = True) -> None:
    if not (_is_number(value) or (optional and value is None)):
        raise _broken(where, part, f"is {_kind(value)}", "a number or null" if optional else "a number")


def _check_interval(value: Any, part: str, where: str) -> None:
    if value is None:
        return
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise _broken(where, part, f"is {_kind(value)}", "[low, high] or null")
    for bound in value:
        _check_number(bound, part, where)
    low, high = value
    if low is not None and high is not None and low > high:
        raise _broken(where, part, f"runs from {low} down to {high}", "[low, high]")


def _check_benchmark(rows: Sequence[Any], where: str) -> None:
    for index, row in enumerate(rows):
        part = f"benchmark[{index}]"
        if not isinstance(row, Mapping):
            raise _broken(where, part, f"is {_kind(row)}", "an object")
        for name in ("model", "task"):
            if not isinstance(row.get(name), str):
                raise _broken(where, f"{part}.{name}", f"is {_kind(row.get(name))}", "a string")
        score = row.get("score")
        _check_number(score, f"{part}.score", where)
        if score is not None and not -1.0 <= score <= 1.0 and score == score:
            raise _broken(where, f"{part}.score", f"is {score}", "between -1 and 1 (not in points)")


def _check_null_effect(null_effect: Mapping[str, Any], where: str) -> None:
    for name in ("estimate", "margin"):
        _check_number(null_effect.get(name), f"null_effect.{name}", where)
    _check_interval(null_effect.get("interval90"), "null_effect.interval90", where)
    _check_number(null_effect.get("sign_flip_p"), "null_effect.sign_flip_p", where)
    for name in ("positive_control", "aa", "power"):
        if null_effect.get(name) is not None and not isinstance(null_effect[name], Mapping):
            raise _broken(where, f"null_effect.{name}", f"is {_kind(null_effect[name])}", "an object or null")
    _check_number((null_effect.get("power") or {}).get("power"), "null_effect.power.power", where)
    effects = {"positive_control": null_effect.get("positive_control") or {}}
    effects |= {f"aa.pairs[{i}]": pair for i, pair in enumerate((null_effect.get("aa") or {}).get("pairs") or [])}
    for name, effect in effects.items():
        if not isinstance(effect, Mapping):
            raise _broken(where, f"null_effect.{name}", f"is {_kind(effect)}", "an object")
        _check_number(effect.get("estimate"), f"null_effect.{name}.estimate", where)
        _check_interval(effect.get("interval90"), f"null_effect.{name}.interval90", where)


def _check_floor(floor: Mapping[str, Any], where: str) -> None:
    if not isinstance(floor.get("runs") or {}, Mapping):
        raise _broken(where, "noise_floor.runs", f"is {_kind(floor['runs'])}", "an object")
    for name, run in (floor.get("runs") or {}).items():
        _check_pair(name, run, where, "noise_floor.runs")


def _check_trajectory(found: Mapping[str, Any], where: str) -> None:
    for measure, entry in (found.get("measures") or {}).items():
        part = f"trajectory.measures.{measure}"
        if not isinstance(entry, Mapping):
            raise _broken(where, part, f"is {_kind(entry)}", "an object")
        _check_curve({**entry, "layers": found.get("steps")}, part, where)


def _check_reasoning(reasoning: Mapping[str, Any], where: str) -> None:
    for name in ("before", "after"):
        part = reasoning.get(name)
        if part is None:
            continue
        if not isinstance(part, Mapping):
            raise _broken(where, f"reasoning.{name}", f"is {_kind(part)}", "an object")
        for field in ("accuracy", "n", "solution_loss"):
            _check_number(part.get(field), f"reasoning.{name}.{field}", where)
        for field in ("interval95", "solution_loss_interval95"):
            _check_interval(part.get(field), f"reasoning.{name}.{field}", where)
    if reasoning.get("training") is not None:
        _check_columns(reasoning["training"], ("step", "loss"), "reasoning.training", where)
    for name in ("loss_change", "unseen_loss_change"):
        change = reasoning.get(name)
        if change is not None:
            if not isinstance(change, Mapping):
                raise _broken(where, f"reasoning.{name}", f"is {_kind(change)}", "an object")
            _check_number(change.get("relative"), f"reasoning.{name}.relative", where)
            _check_interval(change.get("interval95"), f"reasoning.{name}.interval95", where)


def _check_columns(table: Any, names: Sequence[str], part: str, where: str) -> None:
    """Every named column is a list of numbers or nulls, and all have one length."""
    if not isinstance(table, Mapping):
        raise _broken(where, part, f"is {_kind(table)}", "an object")
    for name in names:
        column = table.get(name)
        if not isinstance(column, Sequence) or isinstance(column, str):
            raise _broken(where, f"{part}.{name}", f"is {_kind(column)}", "a list of numbers")
        for value in column:
            _check_number(value, f"{part}.{name}", where)
        if len(column) != len(table[names[0]]):
            found = f"has {len(column)} entries"
            raise _broken(where, f"{part}.{name}", found, f"as long as {names[0]} ({len(table[names[0]])})")


def _check_curve(curve: Any, part: str, where: str) -> None:
    _check_columns(curve, ("layers", "value"), part, where)
    intervals = curve.get("interval95")
    if intervals is None:
        return
    if not isinstance(intervals, Sequence) or len(intervals) != len(curve["layers"]):
        raise _broken(where, f"{part}.interval95", "does not match its layers", "one [low, high] or null per layer")
    for interval in intervals:
        _check_interval(interval, f"{part}.interval95", where)


def _check_pair(pair: str, measures: Any, where: str, section: str = "hrsa") -> None:
    if not isinstance(measures, Mapping):
        raise _broken(where, f"{section}.{pair}", f"is {_kind(measures)}", "an object of measures")
    for name, value in measures.items():
        part = f"{section}.{pair}.{name}"
        if name in PAIR_EXTRAS or value is None:
            continue
        if isinstance(value, Mapping) and "layers_a" in value:
            _check_matrix(value, part, where)
        elif isinstance(value, Mapping) and "layers" in value:
            _check_curve(value, part, where)


def _check_matrix(matrix: Mapping[str, Any], part: str, where: str) -> None:
    rows, columns, value = matrix.get("layers_a"), matrix.get("layers_b"), matrix.get("value")
    if not all(isinstance(item, Sequence) and not isinstance(item, str) for item in (rows, columns, value)):
        raise _broken(where, part, "lacks layers_a, layers_b or value", "a matrix with its two layer axes")
    assert rows is not None
    assert columns is not None
    assert value is not None
    shape = (len(value), {len(row) if isinstance(row, Sequence) else -1 for row in value})
    if shape != (len(rows), {len(columns)}):
        raise _broken(where, part, f"has {len(value)} rows that do not fit", f"{len(rows)} x {len(columns)} numbers")
    for row in value:
        for entry in row:
            _check_number(entry, part, where)
