"""Reads the pages: their code blocks, and the sentences that the code can say."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "BUILD.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))


@dataclass(frozen=True)
class Block:
    """A code block. language: as behind the fence; indented blocks have none ("")."""

    page: str
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Shell lines without comments, continued lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [found for line in lines if (found := re.sub(r"(^|\s)#\s.*", "", line).strip())]


def blocks(page: str) -> list[Block]:
    """Every fenced and every indented code block of a page, in order."""
    found: list[Block] = []
    fence, language = None, ""
    kept: list[str] = []
    before_blank = True
    for line in [*(ROOT / page).read_text(encoding="utf-8").splitlines(), ""]:
        mark = re.match(r"\s*(```+)\s*(\S*)", line)
        if fence is None and mark:
            fence, language, kept = mark[1], mark[2], []
        elif fence is not None and line.strip() == fence:
            found.append(Block(page, language, "\n".join(kept)))
            fence, kept = None, []
        elif fence is not None or (line.startswith("    ") and (before_blank or kept)):
            kept.append(line if fence else line[4:])
        elif kept and line.strip():
            found.append(Block(page, "", "\n".join(kept).strip()))
            kept = []
        if fence is None and not kept:
            before_blank = not line.strip()
    return found + ([Block(page, "", "\n".join(kept).strip())] if kept else [])


def sentences() -> Iterator[str]:
    """Every string of the code, with an ellipsis for each part that depends on the case."""
    files = [ROOT / "launch.py", *(ROOT / "experiments").glob("*.py"), *(ROOT / "hrsa_jax").rglob("*.py")]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)  # type: ignore[misc]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
