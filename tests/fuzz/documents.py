"""Broken documents for hypothesis: a good one with values swapped for odd ones, then bytes cut, flipped or put in."""

from __future__ import annotations

import copy
import json
import struct
from typing import Any

from hypothesis import strategies as st


class _Raw(str):
    """JSON text that json.dumps would not write."""


DEEP = _Raw("[" * 100_000 + "]" * 100_000)
LONG_NUMBER = _Raw("9" * 5000)
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, 2**64, 10**12, -(10**12), 10**400, 0.5, -0.5, 1e-300, 1e308,
    float("nan"), float("inf"), float("-inf"), "", " ", "a", "\0", "\ud800", "\u2028", "../../outside", "/etc/passwd",
    "$(touch outside)", "__import__('os').system('touch outside')", "<script>alert(1)</script>", "{0.__class__}", "%s",
    "9" * 5000, "x" * 3000, [], {}, [[]], [{}], [None], [1, "a"], [-1, -1], ["a", "b"], [10**12], [[1], [2]], {"a": {}},
    {"": None}, {"a": [1]}, {"\ud800": 1}, DEEP, LONG_NUMBER,
)  # fmt: skip
BYTES = (
    b"",
    b"\0",
    b"\xff",
    b"\x80",
    b"\xed\xa0\x80",
    b"\n",
    b"\r",
    b"\x85",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"-",
)
NUMBERS = (0, 1, 8, 9, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 32, 10**12, 33, 64)

_places = st.integers(0, 2**16)
_swaps = st.lists(st.tuples(_places, st.integers(0, 5), st.integers(0, len(ODD) - 1)), max_size=3)
# Two of three documents keep their bytes: one that is no JSON at all says little of what comes after parsing.
_edits = st.one_of(
    *(st.just([]), st.just([])),
    st.lists(st.tuples(_places, st.integers(0, 4), st.integers(0, len(BYTES) - 1)), max_size=3),
)


def spots(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [spot for key, item in items for spot in ((*path, key), *spots(item, (*path, key)))]


def swapped(value: Any, swaps: list[tuple[int, int, int]]) -> Any:
    """`value` with entries replaced by odd ones (mostly), removed, put under another key, or doubled."""
    value = copy.deepcopy(value)
    for place, how, which in swaps:
        paths = spots(value)
        odd = copy.deepcopy(ODD[which]) if not isinstance(ODD[which], _Raw) else ODD[which]
        if not paths:
            return odd
        path = paths[place % len(paths)]
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        if how == 4:
            del parent[path[-1]]
        elif how == 5 and isinstance(parent, dict):
            parent[odd if isinstance(odd, str) and not isinstance(odd, _Raw) else "odd"] = parent[path[-1]]
        else:
            parent[path[-1]] = odd
    return value


def text_of(value: Any) -> str:
    """JSON, also of what json.dumps refuses to nest or to write."""
    if isinstance(value, _Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {text_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(text_of(item) for item in value) + "]"
    return str(value) if isinstance(value, int) and value > 10**399 else json.dumps(value, ensure_ascii=False)


def encoded(text: str) -> bytes:
    """UTF-8, with lone surrogates as the escapes that JSON allows."""
    return text.encode("utf-8", "backslashreplace")


def edited(raw: bytes, edits: list[tuple[int, int, int]]) -> bytes:
    """`raw` with bytes put in, written over, or cut."""
    for place, how, which in edits:
        at, piece = place % (len(raw) + 1), BYTES[which]
        if how == 0:
            raw = raw[:at]
        elif how == 1:
            raw = raw[:at] + piece + raw[at:]
        elif how == 2:
            raw = raw[:at] + bytes([raw[at] ^ (1 << which % 8)]) + raw[at + 1 :] if at < len(raw) else raw
        elif how == 3:
            raw = raw[:at] + piece + raw[at + len(piece) :]
        else:
            raw = raw[:at] + raw[at + 1 + which :]
    return raw


def json_documents(*good: Any) -> st.SearchStrategy[bytes]:
    """JSON files near the good ones."""
    return st.builds(
        lambda value, swaps, edits: edited(encoded(text_of(swapped(value, swaps))), edits),
        *(st.sampled_from(good), _swaps, _edits),
    )


def json_lines(*good: Any) -> st.SearchStrategy[bytes]:
    """JSON-lines files near one with all the good rows."""

    def build(swaps: list[tuple[int, int, int]], edits: list[tuple[int, int, int]]) -> bytes:
        rows = swapped(list(good), swaps)
        rows = rows if isinstance(rows, list) else [rows]
        return edited(b"\n".join(encoded(text_of(row)) for row in rows) + b"\n", edits)

    return st.builds(build, _swaps, _edits)


def values(*good: Any) -> st.SearchStrategy[Any]:
    """Python values near the good ones, for readers of settings."""
    plain = st.integers(0, len(ODD) - 3)  # without raw JSON
    swaps = st.lists(st.tuples(_places, st.integers(0, 5), plain), max_size=4)
    return st.builds(swapped, st.sampled_from(good), swaps)


def plain(*good: bytes) -> st.SearchStrategy[bytes]:
    """Files near the good ones, broken byte by byte, or nothing but random bytes."""
    return st.one_of(st.builds(edited, st.sampled_from(good), _edits), st.binary(max_size=64))


def binary(*good: bytes) -> st.SearchStrategy[bytes]:
    """Binary files near the good ones: odd numbers written over 1, 4 or 8 bytes, mostly in the header."""
    over = st.lists(st.tuples(_places, st.sampled_from("BIQ"), st.sampled_from(NUMBERS)), max_size=3)

    def build(raw: bytes, over: list[tuple[int, str, int]], edits: list[tuple[int, int, int]]) -> bytes:
        for place, form, number in over:
            piece = struct.pack("<" + form, number % 256 ** struct.calcsize("<" + form))
            at = place % max(len(raw), 1)
            raw = raw[:at] + piece + raw[at + len(piece) :]
        return edited(raw, edits)

    return st.builds(build, st.sampled_from(good), over, _edits)


def safetensors(*good: dict[str, Any], data: int) -> st.SearchStrategy[bytes]:
    """Safetensors files with a broken header, a wrong header length or missing data; whole ones have `data` bytes."""

    def build(header: dict[str, Any], swaps: Any, edits: Any, length: int | None) -> bytes:
        raw = edited(encoded(text_of(swapped(header, swaps))), edits)
        return struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(data)

    lengths = st.one_of(st.none(), st.none(), st.none(), st.sampled_from(NUMBERS))
    return st.builds(build, st.sampled_from(good), _swaps, _edits, lengths)


def gguf_string(text: str | bytes) -> bytes:
    """A GGUF string."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


#: GGUF values: type number and bytes
GGUF_ODD = (
    struct.pack("<IB", 0, 0), struct.pack("<II", 4, 0), struct.pack("<II", 4, 2**31), struct.pack("<Ii", 5, -32),
    struct.pack("<If", 6, float("nan")), struct.pack("<If", 6, 0.0), struct.pack("<If", 6, float("inf")),
    struct.pack("<I?", 7, True), struct.pack("<I", 8) + gguf_string("text"),
    struct.pack("<I", 8) + gguf_string(b"\xff\0"),
    struct.pack("<IIQ", 9, 4, 0), struct.pack("<IIQII", 9, 4, 2, 1, 2), struct.pack("<IIQ", 9, 4, 2**63),
    struct.pack("<IIQ", 9, 0, 2**40), struct.pack("<IIQ", 9, 8, 2**40),
    struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000,
    struct.pack("<IQ", 10, 2**64 - 1), struct.pack("<Iq", 11, -1), struct.pack("<Id", 12, 1e308), struct.pack("<I", 13),
)  # fmt: skip


def gguf(good: dict[str, bytes], tensors: bytes, count: int, data: bytes) -> st.SearchStrategy[bytes]:
    """GGUF files with metadata of odd types, then odd numbers and bytes anywhere. `good`: key -> type and value."""
    keys = sorted(good)
    swaps = st.lists(st.tuples(st.sampled_from(keys), st.sampled_from(GGUF_ODD)), max_size=3)

    def build(swaps: list[tuple[str, bytes]]) -> bytes:
        pairs = good | dict(swaps)
        head = b"GGUF" + struct.pack("<IQQ", 3, count, len(pairs))
        raw = head + b"".join(gguf_string(key) + value for key, value in pairs.items()) + tensors
        return raw + bytes(-len(raw) % 32) + data

    return st.one_of(st.builds(build, swaps), swaps.flatmap(lambda chosen: binary(build(chosen))))
