"""Verifiable problems from reasoning-gym: generated questions, worked solutions, exact scorers.

Splits. A question belongs to the held-out side for ever when the SHA-256 of its text says so (one in three),
whatever the seed, the number of draws or the order: no training set can contain a held-out question. Families
built from templates (gsm_symbolic) also withhold every sixth template from training, for the "unseen" split.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hrsa_jax.data.reasoning_gym_loader import SEED_SPAN, is_held_out, reasoning_gym_dataset
from hrsa_jax.reasoning.answers import equal_answers, final_answer, is_number, marked_answer
from hrsa_jax.runtime.errors import InputError

Split = Literal["train", "held_out", "unseen"]
Style = Literal["raw", "question", "few_shot", "chat"]

# family -> (reasoning_gym category, generator options). One-digit, two-term sums and products are what a 135M
# model solves sometimes, so that groups of samples come out mixed.
_ONE_DIGIT = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gsm_symbolic": ("arithmetic", {}),
    "chain_sum": ("arithmetic", _ONE_DIGIT),
    "products": ("arithmetic", _ONE_DIGIT),
    "basic_arithmetic": ("arithmetic", {}),
    "leg_counting": ("arithmetic", {}),
    "fraction_simplification": ("arithmetic", {}),
    "simple_equations": ("algebra", {}),
    "number_sequence": ("cognition", {}),
    "simple_geometry": ("geometry", {}),
}
_UNSEEN_OF = 6
_SHOTS_SEED = -1  # no caller's seed: the worked examples of few-shot prompts are drawn apart


@dataclass(frozen=True)
class Problem:
    """One question with its worked solution and the record that its scorer needs.

    `solution` is the worked solution when the family has one, otherwise the bare answer; `template` numbers
    the generator of a template family, None elsewhere.
    """

    question: str
    solution: str
    answer: str
    family: str
    entry: dict[str, Any] = field(compare=False, repr=False)
    template: int | None = None


def _category(family: str) -> tuple[str, dict[str, Any]]:
    if family not in FAMILIES:
        raise InputError(f"unknown task family {family!r}: choose one of {', '.join(sorted(FAMILIES))}")
    return FAMILIES[family]


@functools.cache
def _scorer(family: str) -> Any:
    category, options = _category(family)
    return reasoning_gym_dataset(category, family, seed=0, size=1, **options).score_answer


def _is_unseen(template: int | None) -> bool:
    return template is not None and template % _UNSEEN_OF == 1


def make_problems(family: str, n: int, *, seed: int, split: Split = "train") -> list[Problem]:
    """Draws n distinct problems, a pure function of the arguments.

    Args:
        family: a key of FAMILIES.
        n: number of problems, all with different questions.
        seed: 0 or more; other seeds give other draws.
        split: "train"; "held_out" (templates as in training, where there are any, but questions that training
            cannot contain); "unseen" (templates withheld from training).

    Raises:
        InputError: unknown family or split, a family without templates asked for "unseen", too few questions.
    """
    if split not in ("train", "held_out", "unseen"):
        raise InputError(f"unknown split {split!r} of {family}: choose train, held_out or unseen")
    if n < 1 or seed < 0:
        raise InputError(f"cannot draw {n} problems of {family} with seed {seed}: n >= 1 and seed >= 0 needed")
    return _draw(family, n, seed, split)


def _draw(family: str, n: int, seed: int, split: Split) -> list[Problem]:
    draws = min(60 * n + 4_000, SEED_SPAN)
    category, options = _category(family)
    dataset = reasoning_gym_dataset(category, family, seed=seed, size=draws, **options)
    templates: Sequence[int] | None = getattr(dataset, "task_indices", None)
    if split == "unseen" and templates is None:
        raise InputError(f"the family {family} has no templates, so there is no unseen split: use held_out")
    problems: list[Problem] = []
    questions: set[str] = set()
    for i in range(draws):
        template = None if templates is None else int(templates[i])
        if (split == "unseen") != _is_unseen(template):
            continue
        entry = dataset[i]
        question = entry["question"]
        if question in questions or (split != "unseen" and is_held_out(question) != (split == "held_out")):
            continue
        questions.add(question)
        solution = entry["metadata"].get("answer_cot") or entry["answer"]
        problems.append(Problem(question, solution, entry["answer"], family, entry, template))
        if len(problems) == n:
            return problems
    raise InputError(
        f"the {split} split of {family} has only {len(problems)} different questions within {draws} draws, "
        f"and {n} were asked for: ask for fewer"
    )


def check_disjoint(train: Sequence[Problem], held_out: Sequence[Problem]) -> None:
    """Raises InputError naming the first held-out question that the training problems contain."""
    seen = {problem.question for problem in train}
    for i, problem in enumerate(held_out):
        if problem.question in seen:
            raise InputError(
                f"held-out problem {i} ({problem.question[:60]!r}) is also a training problem: draw disjoint splits"
            )


def score(problem: Problem, text: str) -> float:
    """Reward of a generated text, in [0, 1]: by the family's own scorer, elsewhere by equality of the answers.

    Numeric answers count as 1 or 0: reasoning-gym's scorers give part credit for any number at all, or for a
    text that contains the right digits ("14" for 4), which rewards form and invites hacking.
    """
    numeric = is_number(problem.answer)
    answer = final_answer(text, numeric=numeric)
    if answer is None:
        return 0.0
    if problem.family not in FAMILIES:
        return 1.0 if equal_answers(problem.answer, answer) else 0.0
    value = float(_scorer(problem.family)(answer, problem.entry))
    if numeric:
        return 1.0 if value >= 1.0 else 0.0
    return min(max(value, 0.0), 1.0)


def well_formed(problem: Problem, text: str) -> bool:
    """True when an answer can be read from the text, behind a marker if the worked solution has one."""
    if marked_answer(problem.solution) is not None and marked_answer(text) is None:
        return False
    return final_answer(text, numeric=is_number(problem.answer)) is not None


@functools.lru_cache(maxsize=64)
def _shots(family: str) -> tuple[Problem, ...]:
    return tuple(_draw(family, 4, _SHOTS_SEED, "train"))


def prompt(problem: Problem, style: Style = "question", *, tokenizer: Any = None) -> str:
    """The text to be continued by a solution.

    Args:
        problem: the problem to ask.
        style: "raw" (the question alone), "question" (Question/Solution, the form of SFT), "few_shot" (three
            worked examples of the training split, never the question itself; the answer is one line), "chat"
            (the tokenizer's chat template).
        tokenizer: needed for "chat" only.
    """
    if style == "raw":
        return f"{problem.question}\n"
    if style == "question":
        return f"Question: {problem.question}\nSolution:\n"
    if style == "few_shot":
        if problem.family not in FAMILIES:
            raise InputError(f"prompt style 'few_shot' needs a generated family, not {problem.family}: use question")
        shots = [shot for shot in _shots(problem.family) if shot.question != problem.question][:3]
        solved = "".join(f"Question: {shot.question}\nAnswer: {shot.answer}\n\n" for shot in shots)
        return f"{solved}Question: {problem.question}\nAnswer:"
    if style == "chat":
        if getattr(tokenizer, "chat_template", None) is None:
            raise InputError("prompt style 'chat' needs a tokenizer with a chat template: use question or few_shot")
        turn = [{"role": "user", "content": problem.question}]
        return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    raise InputError(f"unknown prompt style {style!r}: choose raw, question, few_shot or chat")
