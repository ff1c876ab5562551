"""Python functions with a docstring, read from source files: (summary -> body) pairs of real code.

The standard library is the test side, third-party packages are the training side: those that requirements.txt itself
installs, so that what else is installed changes nothing. Nothing is imported or run: files are parsed. Which functions
there are depends on the versions of Python and of these packages.
"""

import ast
import functools
import hashlib
import inspect
import os
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hrsa_jax.data.leaks import normalised_hash

_SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "testing",
        "idle_test",
        "turtledemo",
        "lib2to3",
        "hrsa_jax",
    }
)
_TRAINING_PACKAGES = (
    *("absl", "datasets", "flax", "gguf", "jax", "jinja2", "matplotlib", "ml_collections", "mteb", "numpy", "optax"),
    *("orbax", "psutil", "reasoning_gym", "safetensors", "scipy", "sentence_transformers", "sklearn"),
    *("tensorboardX", "tokenizers", "torch", "tqdm", "transformers"),
)
_SUMMARY_WORDS = (4, 30)
_BODY_LINES = (3, 40)
_BODY_CHARS = 1500


@dataclass(frozen=True)
class PythonFunction:
    """One function: `summary` is the docstring's first sentence, `body` its source without the docstring."""

    name: str
    where: str  # path relative to the root it was found under
    summary: str
    body: str


@functools.cache
def stdlib_functions() -> tuple[PythonFunction, ...]:
    """All documented functions of the running Python's standard library, in path order; summaries and bodies differ."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return tuple(_distinct(_functions_under(root, _python_files(root))))


def package_functions(n: int, *, seed: int = 0) -> list[PythonFunction]:
    """n documented functions of the packages in requirements.txt, none of which the standard library holds too.

    Files are visited in an order drawn from the seed, and only as many as needed are parsed. Fewer than n come back
    when there are no more.
    """
    known = {h for f in stdlib_functions() for h in (normalised_hash(f.summary), normalised_hash(f.body))}
    found: list[PythonFunction] = []
    for root in _site_packages():
        inside = [path for name in _TRAINING_PACKAGES for path in _python_files(root / name)]
        files = sorted(inside, key=lambda f: _shuffle_key(f.relative_to(root).as_posix(), seed))
        for function in _distinct(_functions_under(root, files, most_per_file=4)):
            if normalised_hash(function.summary) in known or normalised_hash(function.body) in known:
                continue
            found.append(function)
            if len(found) == n:
                return found
    return found


def _shuffle_key(text: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{text}".encode()).digest()


def _site_packages() -> list[Path]:
    paths = sysconfig.get_paths()
    return [Path(p) for p in dict.fromkeys([paths["purelib"], paths["platlib"]]) if Path(p).is_dir()]


def _python_files(root: Path) -> list[Path]:
    """Source files below root, sorted; tests and, below the standard library, installed packages left out."""
    found = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in _SKIPPED_FOLDERS]
        found += [Path(folder, n) for n in names if n.endswith(".py") and not n.startswith(("test_", "_test"))]
    return sorted(found)


def _functions_under(root: Path, files: Iterable[Path], most_per_file: int | None = None) -> Iterator[PythonFunction]:
    for path in files:
        try:
            source = path.read_text(encoding="utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in other people's strings
                tree = ast.parse(source)
        except (OSError, UnicodeDecodeError, SyntaxError, ValueError, RecursionError):
            continue  # another encoding, another Python's syntax, or a file of NULs: not a function we can read
        functions = _functions_in(tree, source.splitlines(), path.relative_to(root).as_posix())
        for taken, function in enumerate(functions):
            if taken == most_per_file:
                break
            yield function


def _functions_in(tree: ast.Module, lines: list[str], where: str) -> Iterator[PythonFunction]:
    for node in _definitions(tree):
        docstring = ast.get_docstring(node)
        if docstring is None or len(node.body) < 2:
            continue
        summary = _first_sentence(docstring)
        body = _source_without_docstring(node, lines)
        if _is_usable(summary, body):
            yield PythonFunction(node.name, where, summary, body)


def _definitions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Function definitions in source order; only statements are visited (expressions are most of a tree)."""
    for part in ("body", "orelse", "handlers", "finalbody"):
        inner = getattr(node, part, None)
        for child in inner if isinstance(inner, list) else ():
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield child
            yield from _definitions(child)


def _first_sentence(docstring: str) -> str:
    """The first sentence of the first paragraph, on one line."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    sentence, stop, _ = paragraph.partition(". ")
    return sentence + stop.strip()


def _source_without_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    docstring = node.body[0]
    assert docstring.end_lineno is not None
    assert node.end_lineno is not None
    kept = lines[node.lineno - 1 : docstring.lineno - 1] + lines[docstring.end_lineno : node.end_lineno]
    return inspect.cleandoc("\n" + "\n".join(kept)).strip()


def _is_usable(summary: str, body: str) -> bool:
    """Short enough to embed, long enough to mean something, and not its own answer."""
    words = summary.split()
    return (
        _SUMMARY_WORDS[0] <= len(words) <= _SUMMARY_WORDS[1]
        and not summary.startswith((":", ">>>", "@"))
        and sum(c.isalpha() or c.isspace() for c in summary) >= 0.8 * len(summary)
        and _BODY_LINES[0] <= body.count("\n") + 1 <= _BODY_LINES[1]
        and len(body) <= _BODY_CHARS
        and summary.lower().rstrip(".") not in body.lower()
    )


def _distinct(functions: Iterable[PythonFunction]) -> Iterator[PythonFunction]:
    """Drops a function whose summary or body came before: each query has one right answer."""
    seen: set[str] = set()
    for function in functions:
        hashes = {normalised_hash(function.summary), normalised_hash(function.body)}
        if not hashes & seen:
            yield function
        seen |= hashes
