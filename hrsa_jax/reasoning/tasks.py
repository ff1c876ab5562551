"""Verifiable problems from reasoning-gym: generated questions, worked solutions, exact scorers.

Importing reasoning_gym as a whole needs packages without wheels (pycosat wants a C compiler), so its
generator modules are imported under a stand-in for the package that runs none of `reasoning_gym/__init__.py`.

Splits. A question belongs to the held-out side for ever when the SHA-256 of its text says so (one in three),
whatever the seed, the number of draws or the order: no training set can contain a held-out question. Families
built from templates (gsm_symbolic) also withhold every sixth template from training, for the "unseen" split.
"""

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

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
_SPAN = 1_000_000  # item i of a reasoning-gym set is drawn from Random(seed + i): our seeds are this far apart
_HELD_OUT_OF = 3
_UNSEEN_OF = 6
_SHOTS_SEED = -1  # no caller's seed: the worked examples of few-shot prompts are drawn apart
_import_lock = threading.Lock()

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_MARKED = (
    re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL),
    re.compile(r"####\s*([^\n]+)"),
    re.compile(r"\\boxed\{([^{}]*)\}"),
    re.compile(r"(?i:the (?:final )?answer is):?\s*([^\n]+)"),
)


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


@contextlib.contextmanager
def _stand_in_package() -> Iterator[None]:
    """Puts an unexecuted `reasoning_gym` into sys.modules, unless the real one is already imported."""
    with _import_lock:
        if "reasoning_gym" in sys.modules:
            yield
            return
        spec = importlib.util.find_spec("reasoning_gym")
        if spec is None:
            raise InputError("the package reasoning-gym is not installed: pip install reasoning-gym")
        sys.modules["reasoning_gym"] = importlib.util.module_from_spec(spec)
        try:
            yield
        finally:
            # taken away again, so that a later `import reasoning_gym` gets the real package
            del sys.modules["reasoning_gym"]


@functools.cache
def _factory(family: str) -> Any:
    """The `create_dataset` function of reasoning-gym, with the family's generator registered."""
    if family not in FAMILIES:
        raise InputError(f"unknown task family {family!r}: choose one of {', '.join(sorted(FAMILIES))}")
    with _stand_in_package():
        importlib.import_module(f"reasoning_gym.{FAMILIES[family][0]}")
        if family == "gsm_symbolic":  # imported on first use by reasoning-gym; here, while the stand-in is there
            for name in ("generators_00_49", "generators_50_99"):
                importlib.import_module(f"reasoning_gym.arithmetic.gsm_symbolic.{name}")
        return importlib.import_module("reasoning_gym.factory").create_dataset


@functools.cache
def _scorer(family: str) -> Any:
    return _factory(family)(family, seed=0, size=1, **FAMILIES[family][1]).score_answer


def _is_held_out(question: str) -> bool:
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") % _HELD_OUT_OF == 0


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
    draws = min(60 * n + 4_000, _SPAN)
    dataset = _factory(family)(family, seed=(seed + 1) * _SPAN, size=draws, **FAMILIES[family][1])
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
        if question in questions or (split != "unseen" and _is_held_out(question) != (split == "held_out")):
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


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text.strip()) is not None


def final_answer(text: str, *, numeric: bool) -> str | None:
    """The answer that a text ends with: the last marked one, else its last number or the whole text.

    Markers: `<answer>..</answer>`, `#### ..`, `\\boxed{..}`, `the answer is ..`. Nothing is ever executed.
    """
    found: str | None = None
    for pattern in _MARKED:
        matches = pattern.findall(text)
        if matches:
            found = matches[-1]
            break
    if not numeric:
        return (text if found is None else found).strip() or None
    numbers = _NUMBER.findall(text if found is None else found)
    if not numbers:
        return None
    # after a marker the answer comes first ("#### 12 apples in 3 bags"), in running text it comes last
    return (numbers[-1] if found is None else numbers[0]).rstrip(",")


def score(problem: Problem, text: str) -> float:
    """Reward of a generated text, in [0, 1], by the family's own scorer.

    Numeric answers count as 1 or 0: reasoning-gym's scorers give part credit for any number at all, or for a
    text that contains the right digits ("14" for 4), which rewards form and invites hacking.
    """
    numeric = _is_number(problem.answer)
    answer = final_answer(text, numeric=numeric)
    if answer is None:
        return 0.0
    value = float(_scorer(problem.family)(answer, problem.entry))
    if numeric:
        return 1.0 if value >= 1.0 else 0.0
    return min(max(value, 0.0), 1.0)


def well_formed(problem: Problem, text: str) -> bool:
    """True when an answer can be read from the text, behind a marker if the worked solution has one."""
    if "####" in problem.solution and not any(pattern.search(text) for pattern in _MARKED):
        return False
    return final_answer(text, numeric=_is_number(problem.answer)) is not None


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
        shots = [shot for shot in _shots(problem.family) if shot.question != problem.question][:3]
        solved = "".join(f"Question: {shot.question}\nAnswer: {shot.answer}\n\n" for shot in shots)
        return f"{solved}Question: {problem.question}\nAnswer:"
    if style == "chat":
        if getattr(tokenizer, "chat_template", None) is None:
            raise InputError("prompt style 'chat' needs a tokenizer with a chat template: use question or few_shot")
        turn = [{"role": "user", "content": problem.question}]
        return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    raise InputError(f"unknown prompt style {style!r}: choose raw, question, few_shot or chat")
