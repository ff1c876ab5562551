"""From a config file's mapping to frozen dataclasses: every key is used or refused, every value has its type."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from hrsa_jax.runtime.errors import InputError

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Makes the dataclass `cls` (nested ones too) from a mapping.

    Raises:
        InputError: an unknown key (with the nearest valid one), a missing key, or a value of another type.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            nearest = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {where}.{nearest[0]}" if nearest else f"valid keys: {', '.join(fields)}"
            raise InputError(f"{where}.{key} is not a setting: {hint}?")
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _convert(values[name], hints[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{where}.{name} is missing: set it in the config file")
    return cls(**arguments)


def to_json(value: Any) -> Any:
    """A dataclass tree as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    return value


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(value, next(item for item in arguments if item is not type(None)), where)
    if origin is typing.Literal:
        if value not in arguments:
            raise InputError(f"{where}={value!r} is not one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise InputError(f"{where}={value!r} is not a list: write it as (a, b)")
        return tuple(_convert(item, arguments[0], f"{where}[{index}]") for index, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise InputError(f"{where}={value!r} is not a group of settings")
        return build(hint, value, where)  # type: ignore[arg-type]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise InputError(f"{where} is too large: give a number below 1e308") from None
    if value is None and hint in (int, float, str, bool):
        raise InputError(f"{where} has no value: give {_article(hint.__name__)} (--{where}=VALUE)")
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise InputError(f"{where}={value!r} is not {_article(hint.__name__)}")
    return value


def _article(name: str) -> str:
    return {"int": "a whole number", "float": "a number", "str": "a text", "bool": "True or False"}[name]
