"""Shared test setup: eight simulated CPU devices, no network, strict JAX."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Three quarters of the suite's time is LLVM, which optimises tiny programs that run once; XLA's own passes stay as they are.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
