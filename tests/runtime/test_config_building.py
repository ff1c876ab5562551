"""Config mapping -> dataclass: unknown keys, types, nesting."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from hrsa_jax.runtime.config import build, to_json
from hrsa_jax.runtime.errors import InputError


@dataclass(frozen=True)
class Inner:
    steps: int
    rate: float = 0.5
    mode: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    inner: Inner
    seeds: tuple[int, ...] = (0,)
    name: str | None = None
    extra: Inner = field(default_factory=lambda: Inner(1))


def test_builds_and_round_trips():
    outer = build(Outer, {"inner": {"steps": 3, "rate": 1}, "seeds": [0, 1], "name": None})
    assert outer == Outer(Inner(3, 1.0), (0, 1))
    assert build(Outer, to_json(outer)) == outer


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"inner": {"stepz": 1}},
            r"config\.inner\.stepz is not a setting: did you mean config\.inner\.steps\?",
        ),
        ({"inner": {}}, r"config\.inner\.steps is missing"),
        ({"inner": {"steps": "3"}}, r"config\.inner\.steps='3' is not a whole number"),
        ({"inner": {"steps": True}}, r"config\.inner\.steps=True is not a whole number"),
        ({"inner": {"steps": 1, "mode": "c"}}, r"config\.inner\.mode='c' is not one of 'a', 'b'"),
        ({"inner": {"steps": 1}, "seeds": 3}, r"config\.seeds=3 is not a list"),
        ({"inner": 3}, r"config\.inner=3 is not a group"),
    ],
)
def test_what_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        build(Outer, values)
