"""The licence that a checkpoint states for itself."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*\n", re.DOTALL)
_FIELD = re.compile(r"^license:\s*[\"']?([^\s\"'\[\]]+)[\"']?\s*$", re.MULTILINE)


def folder_licence(folder: Path) -> str | None:
    """`license:` in the front matter of README.md, as the hub's model cards have it; None where there is none."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:20_000]
    except OSError:
        return None
    front = _FRONT_MATTER.search(text)
    field = _FIELD.search(front[1]) if front else None
    return field[1] if field else None


def gguf_licence(metadata: Mapping[str, Any]) -> str | None:
    """`general.license` of a GGUF header."""
    value = metadata.get("general.license")
    return value if isinstance(value, str) and value.strip() else None
