"""reasoning-gym's generators without reasoning-gym's own import, and the one rule for what is held out.

Importing the whole of reasoning_gym needs packages without wheels (pycosat, a C compiler). Its generator modules
only need the package's name, so they are imported under an unexecuted stand-in that is taken away again.
"""

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from typing import Any

from hrsa_jax.runtime.errors import InputError

# Item i of a reasoning-gym set is drawn from Random(seed + i), so neighbouring seeds share nearly all their items:
# the seeds handed to reasoning-gym are this far apart.
SEED_SPAN = 1_000_000
_HELD_OUT_OF = 3
_lock = threading.Lock()


def is_held_out(text: str) -> bool:
    """Whether a question belongs to the held-out third, by the SHA-256 of its text: for ever, whatever the seed."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % _HELD_OUT_OF == 0


@contextlib.contextmanager
def stand_in_package() -> Iterator[None]:
    """Puts an unexecuted `reasoning_gym` into sys.modules, unless the real one is imported already."""
    with _lock:
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
            del sys.modules["reasoning_gym"]  # a later `import reasoning_gym` gets the real package


@functools.cache
def _create_dataset(category: str) -> Any:
    with stand_in_package():
        importlib.import_module(f"reasoning_gym.{category}")
        if category == "arithmetic":  # gsm_symbolic imports these on first use: do it while the stand-in is there
            for name in ("generators_00_49", "generators_50_99"):
                importlib.import_module(f"reasoning_gym.arithmetic.gsm_symbolic.{name}")
        return importlib.import_module("reasoning_gym.factory").create_dataset


def reasoning_gym_dataset(category: str, family: str, *, seed: int, size: int, **options: Any) -> Any:
    """A reasoning-gym data set of `size` entries {"question", "answer", "metadata"}, drawn from `seed`.

    Args:
        category: the package's folder, e.g. "arithmetic" ("logic" and "games" need compiled packages).
        family: its name in reasoning-gym, e.g. "gsm_symbolic".
        seed: 0 or more; other seeds share no item while size <= SEED_SPAN.
        options: further fields of the family's own configuration.
    """
    return _create_dataset(category)(family, seed=(seed + 1) * SEED_SPAN, size=size, **options)
