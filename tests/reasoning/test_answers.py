"""Answers: read out of texts, compared as mathematics, never executed."""

import sys

import pytest

from hrsa_jax.reasoning import answers


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{1} or rather \boxed{\text{two {2}}}", r"\text{two {2}}"),
        (r"\boxed{never closed", None),
        ("3 bags\n#### 12 apples", "12 apples"),
        ("<answer> x </answer> #### 3", "x"),
        ("The answer is: 7", "7"),
        ("7", None),
    ],
)
def test_marked_answers(text, found):
    assert answers.marked_answer(text) == found


@pytest.mark.parametrize(
    ("expected", "answer", "equal"),
    [
        ("1200", "1,200.0", True),
        (r"\frac{1}{2}", "0.5", True),
        (r"\frac12", "1/2", True),
        ("x^2-1", "(x-1)(x+1)", True),
        (r"2\sqrt{3}", r"\sqrt{12}", True),
        (r"\{1,2\}", r"\{2,1\}", True),
        ("(1,2)", "(2,1)", False),
        ("12", "13", False),
        ("x+1", "x-1", False),
        (r"\text{Tuesday}", r"\text{Monday}", False),
        ("3", "", False),
        ("3", "\\frac{", False),
        ("3", "1" * 400, False),
    ],
)
def test_equal_answers(expected, answer, equal):
    assert answers.equal_answers(expected, answer) is equal


def test_an_answer_is_never_executed(tmp_path):
    trace = tmp_path / "ran"
    for attack in (f"__import__('pathlib').Path({str(trace)!r}).touch()", "exit()", "().__class__"):
        assert answers.equal_answers("1", attack) is False
    assert not trace.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="alarm signals")
def test_a_tower_of_powers_is_given_up(monkeypatch):
    monkeypatch.setattr(answers, "_SECONDS", 1)
    assert answers.equal_answers("1", "9^{9^{9^{9^{9}}}}") is False
