"""Temporary memory of the chunked step by the compiler's own account: that of one chunk, whatever the batch."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from hrsa_jax.data.packing import PackedRows
from hrsa_jax.embedding.batches import ContrastiveBatch
from hrsa_jax.embedding.recipe import ConversionConfig
from hrsa_jax.embedding.step import contrastive_loss_fn
from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.lora import split_trainable

TOKENS = 64
CONFIG = ConversionConfig(steps=1, max_segments=1, layout="packed", dtype="float32", remat=True)
MODEL = ModelConfig.from_hf(
    {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
)


def batch_of(queries):
    """Shapes of a batch of so many queries and as many passages, a text a row; nothing is allocated."""

    def ints(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    rows, number = 2 * queries, jax.ShapeDtypeStruct((), jnp.float32)
    shape = (rows, TOKENS)
    return ContrastiveBatch(
        blocks=(PackedRows(ints(*shape), ints(*shape), ints(*shape), jax.ShapeDtypeStruct(shape, jnp.bool_)),),
        query_slot_Q=ints(queries),
        passage_slot_P=ints(queries),
        positive_Q=ints(queries),
        mask_QP=jax.ShapeDtypeStruct((queries, queries), jnp.bool_),
        teacher_QK=None,
        tokens=number,
        purity=number,
    )


@pytest.fixture(scope="module")
def temporary_bytes():
    """(queries, chunk_tokens | None) -> bytes of temporaries of loss and gradients."""
    graphdef, trainable, frozen = split_trainable(jax.eval_shape(lambda: Decoder(MODEL)), lora=False)

    def measure(queries, chunk_tokens):
        loss_fn = contrastive_loss_fn(graphdef, dataclasses.replace(CONFIG, chunk_tokens=chunk_tokens))
        step = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
        return step.lower(trainable, frozen, batch_of(queries)).compile().memory_analysis().temp_size_in_bytes

    return measure


def test_memory_is_that_of_one_chunk_and_flat_in_the_batch(temporary_bytes):
    chunk = 2 * 64 * TOKENS
    one = temporary_bytes(64, None)
    chunked = {queries: temporary_bytes(queries, chunk) for queries in (256, 1024)}
    assert chunked[256] <= 1.3 * one, (one, chunked)
    assert chunked[1024] <= 1.3 * one, (one, chunked)
