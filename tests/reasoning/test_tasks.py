"""Problems: imported without pycosat, reproducible, split without overlap, scored exactly."""

import dataclasses
import subprocess
import sys

import pytest

from hrsa_jax.reasoning import tasks
from hrsa_jax.runtime.errors import InputError

IMPORT_PROBE = """
import sys
sys.modules["pycosat"] = None  # any import of it fails
if {real_first}:
    import reasoning_gym.arithmetic, types
    assert reasoning_gym.__version__
from hrsa_jax.reasoning import tasks
for family in tasks.FAMILIES:
    problem = tasks.make_problems(family, 1, seed=0)[0]
    assert tasks.score(problem, problem.solution) == 1.0, family
print("jax" in sys.modules, "reasoning_gym" in sys.modules)
"""


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_families_import_without_pycosat_and_leave_no_stand_in_behind():
    assert _run(IMPORT_PROBE.format(real_first=False)).split()[1] == "False"


def test_works_when_the_real_package_was_imported_before():
    code = IMPORT_PROBE.format(real_first=True).replace('sys.modules["pycosat"] = None', "")
    code = "import types, sys; sys.modules.setdefault('pycosat', types.ModuleType('pycosat'))\n" + code
    assert _run(code).split()[1] == "True"


def test_problems_are_a_pure_function_of_family_seed_and_split():
    first = tasks.make_problems("gsm_symbolic", 20, seed=3)
    assert first == tasks.make_problems("gsm_symbolic", 20, seed=3)
    assert first[:10] == tasks.make_problems("gsm_symbolic", 10, seed=3)
    assert first != tasks.make_problems("gsm_symbolic", 20, seed=4)
    assert len({problem.question for problem in first}) == 20
    assert all(problem.solution.endswith(f"#### {problem.answer}") for problem in first)


@pytest.mark.parametrize("family", ["gsm_symbolic", "chain_sum", "products"])
def test_splits_never_share_a_question_whatever_the_seeds(family):
    n = 30
    held_out = tasks.make_problems(family, n, seed=0, split="held_out")
    for seed in range(3):
        tasks.check_disjoint(tasks.make_problems(family, n, seed=seed), held_out)


def test_unseen_templates_are_withheld_from_the_other_splits():
    draws = {
        split: {p.template for p in tasks.make_problems("gsm_symbolic", 150, seed=1, split=split)}
        for split in ("train", "held_out", "unseen")
    }
    assert not draws["unseen"] & (draws["train"] | draws["held_out"])
    assert len(draws["unseen"]) >= 10
    assert len(draws["train"]) >= 50


def test_overlap_is_refused_by_name():
    problems = tasks.make_problems("chain_sum", 4, seed=0)
    with pytest.raises(InputError, match=r"held-out problem 1 .* also a training problem"):
        tasks.check_disjoint(problems, [dataclasses.replace(problems[0], question="other"), problems[2]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "chess"}, "unknown task family 'chess': choose one of basic_arithmetic"),
        ({"split": "test"}, "unknown split 'test'"),
        ({"split": "unseen"}, "no templates"),
        ({"n": 500}, "only 141 different questions"),
        ({"n": 0}, "n >= 1"),
        ({"seed": -1}, "seed >= 0"),
    ],
)
def test_bad_requests_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        tasks.make_problems(**({"family": "chain_sum", "n": 2, "seed": 0} | arguments))


def _sum_problem(answer: str) -> tasks.Problem:
    return tasks.Problem("?", answer, answer, "chain_sum", {"answer": answer})


@pytest.mark.parametrize(
    ("answer", "text", "reward"),
    [
        ("4", " 4", 1.0),
        ("4", "4.0", 1.0),
        ("4", "14", 0.0),  # the family's own scorer gives 0.5 here
        ("4", "I think 9 - 5 = 4", 1.0),
        ("4", "4 is wrong, it is 5", 0.0),
        ("-4", "#### -4", 1.0),
        ("1200", r"so \boxed{1,200}", 1.0),
        ("12", "#### 12 apples in 3 bags", 1.0),
        ("12", "<answer>3</answer> then <answer> 12 </answer>", 1.0),
        ("12", "The final answer is: 12.", 1.0),
        ("4", "no idea", 0.0),
        ("4", "", 0.0),
    ],
)
def test_scores(answer, text, reward):
    assert tasks.score(_sum_problem(answer), text) == reward


def test_gsm_scorer_gives_no_credit_for_a_wrong_number_and_wants_the_marker_to_be_well_formed():
    problem = tasks.make_problems("gsm_symbolic", 1, seed=0)[0]
    assert tasks.score(problem, f"#### {float(problem.answer) + 1}") == 0.0
    assert tasks.score(problem, f"it is {problem.answer}") == 1.0
    assert not tasks.well_formed(problem, f"it is {problem.answer}")
    assert tasks.well_formed(problem, problem.solution)


def test_few_shot_prompt_shows_three_other_questions():
    for problem in tasks.make_problems("chain_sum", 100, seed=0):
        text = tasks.prompt(problem, "few_shot")
        assert text.count("Question:") == 4
        assert text.count(problem.question) == 1
        assert text.endswith(f"Question: {problem.question}\nAnswer:")


def test_prompt_styles():
    problem = _sum_problem("4")
    assert tasks.prompt(problem, "raw") == "?\n"
    assert tasks.prompt(problem) == "Question: ?\nSolution:\n"
    with pytest.raises(InputError, match="chat template"):
        tasks.prompt(problem, "chat")
    with pytest.raises(InputError, match="unknown prompt style"):
        tasks.prompt(problem, "haiku")  # type: ignore[arg-type]
