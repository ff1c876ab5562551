"""A tiny language model over single characters, for every test of this room."""

import pytest
from planted import make_decoder, make_tokenizer

from hrsa_jax.models.decoder import Decoder


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def decoder() -> Decoder:
    return make_decoder()
