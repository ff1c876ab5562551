"""Reading pairs: what a good file gives, and the one sentence each broken one gets."""

import json

import pytest

from hrsa_jax.data.sources import (
    Pair,
    by_dataset,
    open_hub,
    open_jsonl,
    pairs_from_rows,
    read_hub,
    read_jsonl,
    write_jsonl,
)
from hrsa_jax.runtime.errors import InputError

GOOD = {"query": ["Find it", "fox"], "pos": ["a fox"], "neg": ["a dog", "a cat"]}


def write(tmp_path, *lines):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    return path


def test_read_jsonl(tmp_path):
    path = write(tmp_path, GOOD, b"\n", {"query": "dog", "pos": ["x", "y"], "score": 3})
    assert read_jsonl(path, instruction="Default") == [
        Pair("fox", "Find it", ("a fox",), ("a dog", "a cat"), "pairs"),
        Pair("dog", "Default", ("x", "y"), (), "pairs"),
    ]
    assert {pair.dataset for pair in read_jsonl(path, dataset="named")} == {"named"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"query": "a", "pos": ["b', r":2: the line is cut off"),
        (b'{"query": "a", "pos": ["b"]', r":2: the line is cut off"),
        (b'{"query": "a" "pos": ["b"]}\n', r":2: the line is not valid JSON .* column 15"),
        (b'{"query": "\xff", "pos": ["b"]}\n', r":2: byte 12 is not valid UTF-8"),
        (b'{"query": "a\0", "pos": ["b"]}\n', r":2: the line holds a NUL byte"),
        (b'{"query": "a\\u0000", "pos": ["b"]}\n', r":2: 'query' holds a NUL character"),
        (b'{"query": "\\ud800", "pos": ["b"]}\n', r":2: 'query' holds a lone surrogate"),
        (b"[" * 100_000 + b"\n", r":2: the JSON is nested too deeply|:2: the line is cut off"),
        (["query", "pos"], r":2: found a JSON list"),
        ({"query": "  ", "pos": ["b"]}, r":2: 'query' is an empty text"),
        ({"query": "a", "pos": [""]}, r":2: 'pos\[0\]' is an empty text"),
        ({"query": 7, "pos": ["b"]}, r":2: 'query' holds a int"),
        ({"pos": ["b"]}, r":2: 'query' holds nothing"),
        ({"query": "a"}, r":2: 'pos' holds nothing"),
        ({"query": "a", "pos": []}, r":2: 'pos' is an empty list"),
        ({"query": "a", "pos": "b"}, r":2: 'pos' holds a str"),
        ({"query": "a", "pos": ["b", None]}, r":2: 'pos\[1\]' holds nothing"),
        ({"query": "a", "pos": ["b"], "neg": [3]}, r":2: 'neg\[0\]' holds a int"),
        ({"query": ["a"], "pos": ["b"]}, r":2: 'query' is a list of 1"),
        ({"query": ["a", 1.5], "pos": ["b"]}, r":2: 'query' holds a float"),
        ({"query": "a", "pos": ["b"], "pos_ids": [1, 2]}, r":2: 'pos_ids' does not hold one value for each of the 1"),
        ({"query": "a", "pos": ["b"], "neg": ["c"], "neg_scores": ["x"]}, r":2: 'neg_scores' holds 'x', a str"),
        (b'{"query": "a", "pos": ["b"], "pos_scores": [NaN]}\n', r":2: 'pos_scores' .* must be a finite number"),
    ],
)
def test_broken_lines_are_named(tmp_path, line, message):
    path = write(tmp_path, GOOD, line)
    with pytest.raises(InputError, match=message) as error:
        read_jsonl(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_long_lines_are_refused_without_reading_them_whole(tmp_path):
    path = write(tmp_path, {"query": "a" * 1_100_000, "pos": ["b"]})
    with pytest.raises(InputError, match=r":1: the line is longer than 1048576 bytes"):
        read_jsonl(path)
    assert len(read_jsonl(path, max_line_bytes=2_000_000)[0].query) == 1_100_000


def test_duplicate_ids_empty_and_missing_files(tmp_path):
    path = write(tmp_path, {**GOOD, "id": 4}, {**GOOD, "id": 5}, {**GOOD, "id": 4})
    with pytest.raises(InputError, match=r":3: id 4 was used in line 1"):
        read_jsonl(path)
    with pytest.raises(InputError, match="holds no rows"):
        read_jsonl(write(tmp_path, b"\n"))
    with pytest.raises(InputError, match="cannot be read"):
        read_jsonl(tmp_path / "absent.jsonl")


def test_rows_by_column_names():
    rows = [{"q": "fox", "p": "a fox", "n": ["a dog"]}, {"q": "dog", "p": "", "n": []}]
    columns = {"query": "q", "pos": "p", "neg": "n"}
    pairs = pairs_from_rows(rows, columns, where="table", dataset="d", instruction="Find")
    assert next(pairs) == Pair("fox", "Find", ("a fox",), ("a dog",), "d")
    with pytest.raises(InputError, match=r"table row 1: 'pos\[0\]' is an empty text"):
        next(pairs)


def test_read_hub_reads_a_local_folder(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"question": "fox", "answer": "a fox"}\n' * 3)
    pairs = read_hub(str(tmp_path), columns={"query": "question", "pos": "answer"}, limit=2)
    assert [pair.positives for pair in pairs] == [("a fox",)] * 2
    with pytest.raises(InputError, match="has no column 'nope'; it has question, answer"):
        read_hub(str(tmp_path), columns={"query": "question", "pos": "nope"})
    with pytest.raises(InputError, match="needs query and pos"):
        read_hub(str(tmp_path), columns={"query": "question"})
    with pytest.raises(InputError, match="cannot be read"):
        read_hub(str(tmp_path / "absent"), columns={"query": "question", "pos": "answer"})


def test_rows_of_an_open_file_are_read_where_they_lie(tmp_path):
    rows = [{"query": f"q{i} ü", "pos": ["p" * (i + 1)], "neg": [f"n{i}"], "pos_ids": [i]} for i in range(50)]
    path = write(tmp_path, rows[0], b"\n", b"  \n", *rows[1:])
    lazy = open_jsonl(path, instruction="Find")
    assert len(lazy) == 50
    assert list(lazy) == read_jsonl(path, instruction="Find") == lazy[:]
    assert lazy[49] == lazy[-1] == Pair("q49 ü", "Find", ("p" * 50,), ("n49",), "pairs", ("49",))
    assert not any(isinstance(value, list | dict) for value in vars(lazy).values())
    with pytest.raises(IndexError):
        lazy[50]


def test_what_is_written_is_read_back(tmp_path):
    pairs = [
        Pair("q", "Find", ("a", "b"), ("c",), "pairs", ("1", "2"), ("3",), (0.5, 0.25), (-0.125,)),
        Pair("bare", "", ("a",)),
    ]
    assert write_jsonl(tmp_path / "pairs.jsonl", pairs) == 2
    assert read_jsonl(tmp_path / "pairs.jsonl") == pairs
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_hub_rows_are_named_and_checked(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"q": "fox", "p": ["a fox"], "n": "a dog", "s": 0.5}\n' * 3)
    columns = {"query": "q", "pos": "p", "neg": "n", "neg_scores": "s"}
    rows = open_hub(str(tmp_path), columns=columns, dataset="animals", instruction="Find")
    assert rows[2] == Pair("fox", "Find", ("a fox",), ("a dog",), "animals", negative_scores=(0.5,))
    with pytest.raises(InputError, match=r"row 0: 'query' holds a list|'query' is a list"):
        open_hub(str(tmp_path), columns={"query": "p", "pos": "q"})


def test_pairs_by_data_set_keep_their_order():
    pairs = [Pair("1", "", ("p",), (), name) for name in "abab"]
    assert by_dataset(pairs) == {"a": [pairs[0], pairs[2]], "b": [pairs[1], pairs[3]]}
    assert by_dataset({"x": pairs, "empty": []}) == {"x": pairs}


def test_scores_must_be_as_many_as_their_passages():
    with pytest.raises(InputError, match="1 positives but 2 positive scores"):
        Pair("q", "", ("p",), positive_scores=(0.1, 0.2))
