"""Where packages that carry weights or corpora lie: their files are read, their code never runs."""

import difflib
import importlib.machinery
import os
from pathlib import Path

from hrsa_jax.runtime.errors import InputError

_REPOSITORY = Path(__file__).resolve().parents[2]


def offline_package(name: str) -> Path:
    """Folder of an installed package, found without importing it.

    Looked for in $HRSA_OFFLINE, then in .offline/ at the repository root (and in the working directory), then on
    the import path.

    Args:
        name: import name, e.g. "gensim".

    Raises:
        InputError: no such folder; the sentence names the places and the command that installs it.
    """
    if not name.isidentifier():
        raise InputError(f"{name!r} is no package name: give the name that Python would import")
    set_by_hand = os.environ.get("HRSA_OFFLINE")
    roots = [Path(set_by_hand)] if set_by_hand else []
    roots += [_REPOSITORY / ".offline", Path.cwd() / ".offline"]
    for root in roots:
        if (root / name).is_dir():
            return root / name
    spec = importlib.machinery.PathFinder.find_spec(name)
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    installed = [folder.name for root in roots if root.is_dir() for folder in root.iterdir() if folder.is_dir()]
    near = difflib.get_close_matches(name, installed, n=1)
    if near:
        raise InputError(f"package {name!r} is not installed: did you mean package:{near[0]}?")
    raise InputError(
        f"package {name!r} was found neither in {' nor in '.join(str(r) for r in dict.fromkeys(roots))} nor on the "
        "import path: run `pip install --no-deps --target .offline -r requirements-offline.txt`"
    )
