"""Sampling: equal to transformers when greedy, its log-probabilities those of a full forward, compiled once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hrsa_jax.models import generate
from hrsa_jax.models.backbone import load
from hrsa_jax.models.choose import keep_top_p
from hrsa_jax.models.config import ModelConfig, RopeConfig
from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.generate import generate_tokens, unpadded
from hrsa_jax.models.lora import TARGETS, LoRAConfig, add_lora, stacked_linears
from hrsa_jax.runtime.mesh import make_mesh

CONFIG = ModelConfig(
    family="llama",
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
    rope=RopeConfig(),
    tie_word_embeddings=True,
    qkv_bias=False,
    output_bias=False,
    mlp_bias=False,
    qk_norm=False,
    windows=(None, None),
    max_position_embeddings=256,
)


def _prompts(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(len(lengths))
    return [rng.integers(3, 96, n).tolist() for n in lengths]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    """Random weights, enlarged so that the next-token distribution is neither flat nor a point."""
    model = Decoder(CONFIG, seed=0)
    model.embed[...] = model.embed[...] * 10
    for linear in stacked_linears(model).values():
        linear.kernel[...] = linear.kernel[...] * 8
    return model


@pytest.fixture(scope="module")
def torch_twin(decoder):
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    twin = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            max_position_embeddings=256,
        )
    ).eval()
    blocks = twin.model.layers
    with torch.no_grad():
        twin.model.embed_tokens.weight.copy_(torch.tensor(np.asarray(decoder.embed[...])))
        for name, linear in stacked_linears(decoder).items():
            for layer, kernel in enumerate(np.asarray(linear.kernel[...])):
                getattr(getattr(blocks[layer], TARGETS[name]), name).weight.copy_(torch.tensor(kernel.T))
    return twin


LENGTH = 160  # every full forward is padded to it: one compilation


@jax.jit
def _forward_logps(decoder: Decoder, tokens_BT: jax.Array, segment_ids_BT: jax.Array) -> jax.Array:
    output = decoder(tokens_BT, segment_ids_BT, jnp.arange(LENGTH)[None], attention="causal")
    return jax.nn.log_softmax(decoder.logits(output.last_BTD))[0]


def _full_forward_logps(decoder: Decoder, prompt: list[int], completion: list[int]) -> np.ndarray:
    """log p of each completion token, from one forward without a cache."""
    used = len(prompt) + len(completion)
    tokens_BT = np.zeros((1, LENGTH), np.int32)
    tokens_BT[0, :used] = prompt + completion
    logps_TV = np.asarray(_forward_logps(decoder, tokens_BT, (np.arange(LENGTH) < used)[None].astype(np.int32)))
    return logps_TV[np.arange(len(prompt) - 1, used - 1), completion]


def test_greedy_equals_transformers_with_and_without_a_stop_id(decoder, torch_twin):
    torch = pytest.importorskip("torch")
    prompts = _prompts(5, 1, 17, 31, 9, 2, 12, 30)
    samples = generate_tokens(decoder, prompts, max_new_tokens=64, eos_ids=[], batch_size=8)
    assert samples.truncated.all()
    expected = []
    for prompt in prompts:
        with torch.no_grad():
            out = torch_twin.generate(
                torch.tensor([prompt]), do_sample=False, min_new_tokens=64, max_new_tokens=64, pad_token_id=0
            )
        expected.append(out[0, len(prompt) :].tolist())
    assert samples.tokens == expected
    # with a stop id each row ends at its first one, which is part of the completion
    stop = expected[0][7]
    stopped = generate_tokens(decoder, prompts, max_new_tokens=64, eos_ids=[stop], batch_size=8)
    for full, cut, truncated in zip(expected, stopped.tokens, stopped.truncated, strict=True):
        assert cut == (full[: full.index(stop) + 1] if stop in full else full)
        assert truncated == (stop not in full)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1.3, "top_p": 0.9}])
def test_log_probabilities_equal_a_full_forward(decoder, options):
    prompts = _prompts(3, 20, 8)
    samples = generate_tokens(decoder, prompts, max_new_tokens=12, eos_ids=[5], seed=4, **options)
    for prompt, tokens, logps in zip(prompts, samples.tokens, samples.logps, strict=True):
        assert len(tokens) == len(logps) >= 1
        np.testing.assert_allclose(logps, _full_forward_logps(decoder, prompt, tokens), atol=1e-4)


def test_prompts_of_several_chunks_and_adapters(decoder):
    adapted = add_lora(decoder, LoRAConfig(rank=2, alpha=4.0), seed=0)
    for linear in stacked_linears(adapted).values():
        linear.lora.b[...] = 0.2 * jnp.ones_like(linear.lora.b[...])
    prompts = _prompts(150, 133)
    samples = generate_tokens(adapted, prompts, max_new_tokens=6, eos_ids=[])
    for prompt, tokens, logps in zip(prompts, samples.tokens, samples.logps, strict=True):
        np.testing.assert_allclose(logps, _full_forward_logps(adapted, prompt, tokens), atol=1e-4)


def test_a_sample_does_not_depend_on_its_batch_and_seeds_differ(decoder):
    prompts = _prompts(4, 9, 14, 22, 30)
    options = {"max_new_tokens": 10, "eos_ids": [7, 11], "temperature": 1.0}
    together = generate_tokens(decoder, prompts, seed=1, batch_size=8, **options)
    assert generate_tokens(decoder, prompts, seed=1, batch_size=2, **options).tokens == together.tokens
    assert generate_tokens(decoder, prompts, seed=2, batch_size=8, **options).tokens != together.tokens
    repeated = generate_tokens(decoder, [prompts[0]] * 8, seed=1, batch_size=8, **options).tokens
    assert len({tuple(tokens) for tokens in repeated}) > 4


def test_calls_of_equal_shape_are_compiled_once(decoder):
    options = {"max_new_tokens": 3, "batch_size": 4, "temperature": 0.7}
    generate_tokens(decoder, _prompts(5, 6, 7, 8), eos_ids=[1], **options)
    compiled = [program._cache_size() for program in (generate._enter, generate._advance)]
    merged = jax.tree.map(lambda x: x * 1.01, decoder)
    generate_tokens(merged, _prompts(14, 2, 3), eos_ids=[4, 5], seed=9, **(options | {"temperature": 1.1}))
    generate_tokens(decoder, _prompts(14, 2, 3, 4, 5, 6, 7, 8), eos_ids=[], **options)
    assert [program._cache_size() for program in (generate._enter, generate._advance)] == compiled


def test_bfloat16_cache_stays_close(decoder):
    prompts = _prompts(6, 11)
    samples = generate_tokens(decoder, prompts, max_new_tokens=8, eos_ids=[], dtype=jnp.bfloat16)
    for prompt, tokens, logps in zip(prompts, samples.tokens, samples.logps, strict=True):
        np.testing.assert_allclose(logps, _full_forward_logps(decoder, prompt, tokens), atol=0.3)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_nucleus_is_the_smallest_set_that_holds_the_mass(top_p):
    logits_BV = jnp.asarray(np.random.default_rng(0).normal(size=(5, 200)) * 3, jnp.float32)
    kept_BV = np.isfinite(keep_top_p(logits_BV, top_p))
    probs_BV = np.asarray(jax.nn.softmax(logits_BV), np.float64)
    for probs_V, kept_V in zip(probs_BV, kept_BV, strict=True):
        order = np.argsort(-probs_V)
        size = int(np.searchsorted(np.cumsum(probs_V[order]), top_p - 1e-6)) + 1
        assert set(np.flatnonzero(kept_V)) == set(order[: min(size, 200)])


def test_samples_follow_the_models_distribution(decoder):
    prompt = _prompts(6)[0]
    logps_V = np.asarray([_full_forward_logps(decoder, prompt, [token])[0] for token in range(96)])
    scaled_V = logps_V / 0.8
    probs_V = np.exp(scaled_V - scaled_V.max())
    probs_V /= probs_V.sum()
    n = 2048
    samples = generate_tokens(
        decoder, [prompt] * n, max_new_tokens=1, eos_ids=[], temperature=0.8, seed=3, batch_size=n
    )
    counts_V = np.bincount([tokens[0] for tokens in samples.tokens], minlength=96)
    error_V = np.abs(counts_V - n * probs_V) / np.sqrt(n * probs_V * (1 - probs_V) + 1)
    assert error_V.max() < 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_ids": [[1], []]}, r"prompt_ids\[1\] is empty"),
        ({"prompt_ids": [[1] * 250], "max_new_tokens": 10}, "the model has 256 positions"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
    ],
)
def test_bad_arguments_are_named(decoder, change, message):
    with pytest.raises(ValueError, match=message):
        generate_tokens(decoder, **({"prompt_ids": [[1, 2]], "max_new_tokens": 2, "eos_ids": []} | change))


def test_no_prompts_give_no_samples(decoder):
    assert generate_tokens(decoder, [], max_new_tokens=2, eos_ids=[]).tokens == []


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_finished_rows_are_refilled_without_a_trace(decoder, batch_size):
    """Rows end at different times; later prompts take their place at any slot of the ring."""
    prompts = [prompt for n in range(3) for prompt in _prompts(5, 19, 2, 30)][:11]
    options = {"max_new_tokens": 9, "eos_ids": list(range(0, 96, 6)), "temperature": 1.0, "seed": 2}
    samples = generate_tokens(decoder, prompts, batch_size=batch_size, **options)
    assert len({len(tokens) for tokens in samples.tokens}) > 2
    for i, (prompt, tokens, logps) in enumerate(zip(prompts, samples.tokens, samples.logps, strict=True)):
        assert tokens[-1] % 6 == 0 or (samples.truncated[i] and len(tokens) == 9)
        np.testing.assert_allclose(logps, _full_forward_logps(decoder, prompt, tokens), atol=1e-4)
    assert samples.tokens == generate_tokens(decoder, prompts, batch_size=16, **options).tokens


def test_stop_strings_end_a_row_at_the_token_that_completes_one(decoder):
    class Letters:
        def decode(self, tokens, skip_special_tokens):
            return "".join(chr(32 + token) for token in tokens)

    prompts = _prompts(4, 9, 14)
    whole = generate_tokens(decoder, prompts, max_new_tokens=30, eos_ids=[], temperature=1.0, seed=5)
    texts = [Letters().decode(tokens, False) for tokens in whole.tokens]
    stops = [texts[0][11:13], texts[1][3:5]]
    cut = generate_tokens(
        decoder,
        prompts,
        max_new_tokens=30,
        eos_ids=[],
        temperature=1.0,
        seed=5,
        stop_strings=stops,
        tokenizer=Letters(),
        batch_size=2,
    )
    for tokens, logps, truncated, all_tokens, text in zip(
        cut.tokens, cut.logps, cut.truncated, whole.tokens, texts, strict=True
    ):
        ends = [text.find(stop) + 2 for stop in stops if stop in text]
        assert tokens == all_tokens[: min(ends, default=30)]
        assert len(logps) == len(tokens)
        assert truncated == (not ends)
    with pytest.raises(ValueError, match="need a tokenizer"):
        generate_tokens(decoder, prompts, max_new_tokens=2, eos_ids=[], stop_strings=["a"])


def test_padding_on_either_side_is_taken_off():
    tokens_BT = np.array([[0, 0, 5, 6], [7, 8, 0, 0]])
    assert unpadded(tokens_BT, np.array([[0, 0, 1, 1], [1, 1, 0, 0]])) == [[5, 6], [7, 8]]


def test_rows_and_weights_on_a_mesh_change_nothing(model_folder):
    alone, spread = (load(model_folder, mesh=mesh).decoder for mesh in (None, make_mesh(data=2, fsdp=2, tensor=2)))
    prompts = _prompts(4, 9, 14, 22, 30, 3, 7, 8, 11)
    options = {"max_new_tokens": 6, "eos_ids": [7, 11], "batch_size": 8}
    expected, found = (generate_tokens(decoder, prompts, **options) for decoder in (alone, spread))
    assert found.tokens == expected.tokens
    for left, right in zip(found.logps, expected.logps, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)


@pytest.mark.parametrize("windows", [(None, 4), (3, 3)])
def test_windows_biases_and_norms_of_the_other_families(windows):
    model = Decoder(dataclasses.replace(CONFIG, windows=windows, qk_norm=True, qkv_bias=True), seed=1)
    model.embed[...] = model.embed[...] * 10
    prompts = _prompts(9, 3, 14, 5, 21, 2)
    samples = generate_tokens(model, prompts, max_new_tokens=8, eos_ids=[3, 4], temperature=1.0, batch_size=4)
    for prompt, tokens, logps in zip(prompts, samples.tokens, samples.logps, strict=True):
        np.testing.assert_allclose(logps, _full_forward_logps(model, prompt, tokens), atol=1e-4)
