"""Shared test setup: eight simulated CPU devices, no network, strict JAX."""

import os

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Most of the suite's time is LLVM, optimising tiny programs that run once; XLA's own passes stay as they are.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# Files of minutes each, the longest first: begun last, one of them would keep one worker busy while the other is idle.
_LONG = (
    *("experiments/test_study.py", "experiments/test_convert.py", "evaluation/test_hub_tasks.py"),
    *("experiments/test_tune.py", "reasoning/test_sft.py", "reasoning/test_policy.py", "hrsa/test_series.py"),
    *("notebooks/test_notebooks.py", "runtime/test_crash.py", "models/test_real_weights.py", "hrsa/test_ring.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; all else as it was."""
    items.sort(key=lambda item: next((n for n, name in enumerate(_LONG) if str(item.path).endswith(name)), len(_LONG)))
