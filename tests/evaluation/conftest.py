"""Tiny versions of the offline tasks, shared by the tests that run mteb."""

import dataclasses
import sys
from pathlib import Path
from types import MappingProxyType

import pytest

sys.path.append(str(Path(__file__).parents[1] / "experiments"))  # tiny.py, a model of a few kilobytes

from hrsa_jax.evaluation import offline_data, offline_tasks

TINY = offline_data.Amounts("small", 6, 12, 400, 5, 6, 12, 9, 3, 20, 20, 6, 2, 3, 4, 6, 3, 8)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("offline")


@pytest.fixture
def tiny(monkeypatch, tiny_folder):
    """Makes size "small" a handful of rows; returns the folder of the data sets."""
    amounts = MappingProxyType({"small": TINY, "full": dataclasses.replace(TINY, size="full", code_queries=8)})
    monkeypatch.setattr(offline_tasks, "AMOUNTS", amounts)
    return tiny_folder
