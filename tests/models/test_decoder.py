"""The decoder against transformers, and what must not matter: padding, packing, batches, implementations, remat."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import (
    VARIANTS,
    assert_close,
    hf_model,
    load_decoder,
    our_states,
    right_padded,
    run,
    save,
    their_states,
)

from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.decoder import Decoder


def tiny(**changes) -> Decoder:
    fields = {
        "model_type": "llama",
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    decoder = Decoder(ModelConfig.from_hf(fields | changes))
    decoder.blocks.q_proj.kernel[...] = decoder.blocks.q_proj.kernel[...] * 20  # attention that is not uniform
    decoder.blocks.k_proj.kernel[...] = decoder.blocks.k_proj.kernel[...] * 20
    return decoder


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_hidden_state_and_the_logits_equal_transformers(variant, tmp_path):
    model = hf_model(variant)
    decoder = load_decoder(save(model, tmp_path))
    # The dynamic variant stretches by the length of the padded batch in transformers, of each text here.
    lengths = [13, 13] if variant == "llama-dynamic" else [13, 6, 1]
    tokens, mask = right_padded(lengths)
    for attention in ("causal", "bidirectional"):
        states, logits = our_states(decoder, tokens, mask, attention)
        expected, expected_logits = their_states(model, tokens, mask, attention)
        assert len(states) == len(expected) == decoder.config.num_layers + 1
        for ours, theirs in zip(states, expected, strict=True):
            assert_close(ours[mask], theirs[mask])
        assert_close(logits[mask], expected_logits[mask])


def test_the_two_attention_modes_and_a_future_token():
    decoder = tiny()
    tokens, mask = right_padded([9], 61)
    changed = tokens.copy()
    changed[0, -1] += 1
    for attention, moved in (("causal", False), ("bidirectional", True)):
        before = our_states(decoder, tokens, mask, attention)[0][-1, 0, :-1]
        after = our_states(decoder, changed, mask, attention)[0][-1, 0, :-1]
        assert (np.abs(before - after).max() > 1e-4) == moved


@pytest.mark.parametrize(
    ("changes", "attention"),
    [
        ({}, "causal"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
            "bidirectional",
        ),
        ({"max_position_embeddings": 4, "rope_scaling": {"type": "dynamic", "factor": 3.0}}, "causal"),
    ],
    ids=["plain", "windows", "dynamic"],
)
def test_packed_rows_padding_and_batch_of_one_change_nothing(changes, attention):
    decoder = tiny(**changes)
    tokens, mask = right_padded([10, 5, 7], 61)
    apart, _ = our_states(decoder, tokens, mask, attention)
    alone, _ = our_states(decoder, tokens[1:2, :5], mask[1:2, :5], attention)
    np.testing.assert_allclose(alone[:, 0], apart[:, 1, :5], atol=1e-5)

    lengths = mask.sum(1)
    packed = np.concatenate([tokens[i, :n] for i, n in enumerate(lengths)] + [[0, 0]])[None].astype(np.int32)
    segments = np.concatenate([[i + 1] * n for i, n in enumerate(lengths)] + [[0, 0]])[None].astype(np.int32)
    positions = np.concatenate([np.arange(n) for n in lengths] + [[0, 0]])[None].astype(np.int32)
    together, _ = run(decoder, packed, segments, positions, attention)
    np.testing.assert_allclose(together[:, 0, :-2], apart[:, mask], atol=1e-5)
    assert np.isfinite(together).all()


def test_collect_runs_in_the_scan_and_may_return_any_tree():
    decoder = tiny()
    tokens, mask = right_padded([6, 4], 61)
    positions = np.broadcast_to(np.arange(6), tokens.shape)
    out = decoder(
        tokens,
        mask.astype(int),
        positions,
        attention="causal",
        collect=lambda h: {"mean": h.mean(1), "norm": jnp.linalg.norm(h)},
    )
    states, _ = our_states(decoder, tokens, mask, "causal")
    assert out.collected["mean"].shape == (3, 2, 32)
    np.testing.assert_allclose(out.collected["mean"], states.mean(2), atol=1e-5)
    np.testing.assert_allclose(out.collected["norm"], np.linalg.norm(states.reshape(3, -1), axis=1), rtol=1e-5)
    np.testing.assert_allclose(out.last_BTD, states[-1], atol=1e-5)
    assert decoder(tokens, mask.astype(int), positions, attention="causal").collected is None


def test_remat_gives_the_same_gradients_and_bfloat16_stays_close():
    decoder = tiny()
    tokens, mask = right_padded([8, 5], 61)
    positions = np.broadcast_to(np.arange(8), tokens.shape)

    @functools.partial(jax.jit, static_argnames=("remat", "dtype"))
    def loss(decoder, remat=False, dtype=jnp.float32):
        out = decoder(tokens, mask.astype(int), positions, attention="causal", remat=remat, dtype=dtype)
        return jnp.where(mask[..., None], out.last_BTD, 0).std()

    plain, again = (jax.jit(jax.grad(functools.partial(loss, remat=remat)))(decoder) for remat in (False, True))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
    full, half = loss(decoder), loss(decoder, dtype=jnp.bfloat16)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(full, half, rtol=2e-2)


def test_log_probs_equal_log_softmax_and_its_gradient_without_all_logits():
    decoder = tiny(tie_word_embeddings=True)
    h = jax.random.normal(jax.random.key(0), (2, 7, 32))
    targets = jax.random.randint(jax.random.key(1), (2, 7), 0, 61)

    def reference(decoder, h):
        logp = jax.nn.log_softmax(decoder.logits(h))
        return jnp.take_along_axis(logp, targets[..., None], -1)[..., 0]

    def ours(decoder, h):
        return decoder.log_probs(h, targets, block=3)

    np.testing.assert_allclose(ours(decoder, h), reference(decoder, h), atol=1e-5)
    expected = jax.jit(jax.grad(lambda d, h: jnp.sin(reference(d, h)).sum(), argnums=(0, 1)))(decoder, h)
    found = jax.jit(jax.grad(lambda d, h: jnp.sin(ours(d, h)).sum(), argnums=(0, 1)))(decoder, h)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)

    # No array as large as (B, T, V) appears in the compiled program, forward and backward.
    big_h, big_targets = jnp.zeros((2, 64, 32)), jnp.zeros((2, 64), int)
    step = jax.jit(jax.grad(lambda h: decoder.log_probs(h, big_targets, block=8).sum()))
    text = step.lower(big_h).compile().as_text()
    assert "f32[2,8,61]" in text or "f32[16,61]" in text
    assert "f32[2,64,61]" not in text
    assert "f32[128,61]" not in text
    assert "f32[8,2,8,61]" not in text


def test_the_decoder_is_a_pytree_that_splits_and_merges():
    decoder = tiny()
    graph, state = nnx.split(decoder)
    assert nnx.merge(graph, state).config == decoder.config
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(nnx.state(decoder.blocks)))


def test_a_decoder_without_a_head_says_so():
    with pytest.raises(ValueError, match="no language-model head"):
        tiny(architectures=["LlamaModel"]).logits(jnp.zeros((1, 1, 32)))
