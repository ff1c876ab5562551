"""The licence that a checkpoint states for itself."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*\n", re.DOTALL)
_FIELD = re.compile(
    r"^license(?P<name>_name)?:[ \t]*[\"']?(?P<value>[^\s\"'\[\]#]+)[\"']?[ \t]*(?:#.*)?$", re.MULTILINE
)


def folder_licence(folder: Path) -> str | None:
    """`license:` in the front matter of README.md, as the hub's model cards have it; None where there is no single one.

    "other" is replaced by `license_name:`, as the hub does.
    """
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:20_000]
    except OSError:
        return None
    front = _FRONT_MATTER.search(text)
    fields = {bool(field["name"]): field["value"] for field in _FIELD.finditer(front[1])} if front else {}
    stated = fields.get(True) if fields.get(False) == "other" and True in fields else fields.get(False)
    return None if stated in ("null", "~") else stated


def gguf_licence(metadata: Mapping[str, Any]) -> str | None:
    """`general.license` of a GGUF header."""
    value = metadata.get("general.license")
    return value if isinstance(value, str) and value.strip() else None
