"""Reading the answer out of a generated text, and equality of answers as mathematics. Nothing is ever executed.

Equality is math-verify's over its LaTeX parser (a grammar); its other parser hands text to Python's `eval` and is
never used.
"""

import logging
import re
import threading
from typing import Any

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_MARKED = (
    re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL),
    re.compile(r"####\s*([^\n]+)"),
    re.compile(r"(?i:the (?:final )?answer is):?\s*([^\n]+)"),
)
_BOXED = re.compile(r"\\boxed\s*\{")
_LONGEST = 300  # characters of an answer that are parsed; longer ones are compared as text
_SECONDS = 3


def is_number(text: str) -> bool:
    """Whether a whole text is one number, such as -1,200.5."""
    return _NUMBER.fullmatch(text.strip()) is not None


def marked_answer(text: str) -> str | None:
    """The last marked answer: `<answer>..</answer>`, `#### ..`, `\\boxed{..}`, `the answer is ..`; else None."""
    for pattern in _MARKED[:2]:
        if matches := pattern.findall(text):
            return matches[-1]
    if boxes := [box for box in (_braced(text, match.end()) for match in _BOXED.finditer(text)) if box is not None]:
        return boxes[-1]
    return matches[-1] if (matches := _MARKED[2].findall(text)) else None


def _braced(text: str, start: int) -> str | None:
    """What stands between an opened brace and the one that closes it."""
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end].strip()
    return None


def final_answer(text: str, *, numeric: bool) -> str | None:
    """The answer that a text ends with: the last marked one, else its last number or the whole text."""
    found = marked_answer(text)
    if not numeric:
        return (text if found is None else found).strip() or None
    numbers = _NUMBER.findall(text if found is None else found)
    if not numbers:
        return None
    # after a marker the answer comes first ("#### 12 apples in 3 bags"), in running text it comes last
    return (numbers[-1] if found is None else numbers[0]).rstrip(",")


def equal_answers(expected: str, answer: str) -> bool:
    """Whether two answers are the same number or the same mathematics (LaTeX or plain); as text when unreadable.

    `1/2`, `0.5`, `\\frac12` and `50\\%` are equal; so are sets in any order and expanded or factored polynomials.
    """
    expected, answer = expected.strip().rstrip("."), answer.strip().rstrip(".")
    if expected == answer:
        return True
    if is_number(expected) and is_number(answer):
        return float(expected.replace(",", "")) == float(answer.replace(",", ""))
    if max(len(expected), len(answer)) > _LONGEST:
        return False
    return _equal_mathematics(expected, answer)


def _equal_mathematics(expected: str, answer: str) -> bool:
    from math_verify import LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # unreadable answers are wrong, not news
    # the limit is an alarm signal, which Python delivers to the main thread only
    limit = _SECONDS if threading.current_thread() is threading.main_thread() else None
    read: list[Any] = [
        parse(
            f"\\boxed{{{text.strip('$ ')}}}",
            extraction_config=[LatexExtractionConfig()],
            parsing_timeout=limit,
        )
        for text in (expected, answer)
    ]
    return bool(read[0] and read[1] and verify(read[0], read[1], timeout_seconds=limit))
