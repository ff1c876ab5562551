"""One complete tiny model folder for the tests that only read it, and a copy for those that break it."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A tiny LLaMA with a tokenizer, as transformers saves it; do not change it."""
    from tiny_models import hf_model, save_with_tokenizer

    return save_with_tokenizer(hf_model("llama"), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def own_folder(model_folder, tmp_path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))
