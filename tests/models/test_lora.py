"""Adapters: nothing at first, exact when merged, alone in the gradient, and PEFT's file format both ways."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from hrsa_jax.models.config import ModelConfig, RopeConfig
from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.lora import (
    TARGETS,
    LoRAConfig,
    add_lora,
    load_adapter,
    merge_lora,
    remove_lora,
    save_adapter,
    split_trainable,
    stacked_linears,
    unmerge_lora,
)
from hrsa_jax.runtime.errors import InputError

CONFIG = ModelConfig(
    family="llama",
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    rms_norm_eps=1e-5,
    rope=RopeConfig(),
    tie_word_embeddings=True,
    qkv_bias=False,
    output_bias=False,
    mlp_bias=False,
    qk_norm=False,
    windows=(None, None),
    max_position_embeddings=64,
)
TOKENS_BT = np.random.default_rng(0).integers(0, 40, (2, 7)).astype(np.int32)
SEGMENTS_BT, POSITIONS_BT = np.ones((2, 7), np.int32), np.tile(np.arange(7, dtype=np.int32), (2, 1))


@pytest.fixture(scope="module")
def base() -> Decoder:
    return Decoder(CONFIG, seed=0)


@pytest.fixture(scope="module")
def trained(base) -> Decoder:
    """A decoder whose B factors are no longer zero."""
    decoder = add_lora(base, LoRAConfig(rank=3, alpha=6.0), seed=1)
    for number, linear in enumerate(stacked_linears(decoder).values()):
        linear.lora.b[...] = 0.3 * jax.random.normal(jax.random.key(number), linear.lora.b[...].shape)
    return decoder


@jax.jit
def forward(decoder: Decoder) -> jax.Array:
    return decoder(TOKENS_BT, SEGMENTS_BT, POSITIONS_BT, attention="causal").last_BTD


def test_fresh_adapters_change_nothing_and_leave_the_given_decoder_alone(base):
    adapted = add_lora(base, LoRAConfig(rank=3, alpha=6.0, targets=("q_proj", "down_proj")), seed=1)
    np.testing.assert_array_equal(forward(adapted), forward(base))
    assert all(linear.lora is None for linear in stacked_linears(base).values())
    with_adapters = {name for name, linear in stacked_linears(adapted).items() if linear.lora is not None}
    assert with_adapters == {"q_proj", "down_proj"}
    lora = stacked_linears(adapted)["down_proj"].lora
    assert (lora.a[...].shape, lora.b[...].shape, lora.scale) == ((2, 24, 3), (2, 3, 16), 2.0)
    assert adapted.embed[...] is base.embed[...]


def test_merge_equals_the_adapted_forward_and_the_written_out_kernel(base, trained):
    merged = merge_lora(trained)
    assert float(jnp.max(jnp.abs(forward(trained) - forward(base)))) > 0.1
    np.testing.assert_allclose(forward(merged), forward(trained), atol=2e-5)
    for name, linear in stacked_linears(merged).items():
        lora = stacked_linears(trained)[name].lora
        delta = np.asarray(lora.a[...], np.float64) @ np.asarray(lora.b[...], np.float64)
        expected = np.asarray(stacked_linears(base)[name].kernel[...], np.float64) + 2.0 * delta
        np.testing.assert_allclose(linear.kernel[...], expected, rtol=1e-6, atol=1e-7)
        assert linear.lora is None


def test_removing_is_exact_and_unmerging_is_exact_to_a_rounding(base, trained):
    np.testing.assert_array_equal(forward(remove_lora(trained)), forward(base))
    back = unmerge_lora(merge_lora(trained), trained)
    for name, linear in stacked_linears(back).items():
        np.testing.assert_allclose(linear.kernel[...], stacked_linears(base)[name].kernel[...], atol=5e-7)


def test_gradients_are_taken_for_adapters_only(trained):
    graphdef, trainable, frozen = split_trainable(trained, lora=True)

    @jax.jit
    def gradient(trainable):
        return jax.grad(lambda t: jnp.sum(jnp.square(forward(nnx.merge(graphdef, t, frozen)))))(trainable)

    leaves = jax.tree.leaves(gradient(trainable))
    assert len(leaves) == 2 * len(TARGETS)
    assert all(bool(jnp.any(leaf != 0)) for leaf in leaves)
    assert len(jax.tree.leaves(frozen)) == 7 + 4  # kernels; embedding and three norms
    _, everything, rest = split_trainable(remove_lora(trained), lora=False)
    assert (len(jax.tree.leaves(everything)), len(jax.tree.leaves(rest))) == (11, 0)
    with pytest.raises(ValueError, match="no adapters"):
        split_trainable(remove_lora(trained), lora=True)


def test_file_round_trip_and_the_names_peft_writes(base, trained, tmp_path):
    save_adapter(trained, tmp_path, base="org/model")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 7
    assert tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"].shape == (3, 16)
    assert tensors["base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"].shape == (16, 3)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 6.0)
    assert set(config["target_modules"]) == set(TARGETS)
    np.testing.assert_array_equal(forward(load_adapter(base, tmp_path)), forward(trained))


def test_unknown_layer_names_are_refused_with_the_valid_ones():
    with pytest.raises(InputError, match=r"unknown layer 'wq' .* q_proj, k_proj, v_proj, o_proj, gate_proj"):
        LoRAConfig(targets=("q_proj", "wq"))
    with pytest.raises(InputError, match="rank of at least 1"):
        LoRAConfig(rank=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "only LORA"),
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"target_modules": ["c_attn"]}, "unknown layer 'c_attn'"),
        ({"r": None}, "r and target_modules"),
        ({"target_modules": ["q_proj"]}, r"k_proj.lora_A.weight is not expected.* and 1[0-9] more"),
        ({"r": 4}, r"lora_A.weight has shape \(3, 16\), not \(4, 16\)"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(base, trained, tmp_path, change, message):
    save_adapter(trained, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        load_adapter(base, tmp_path)


def test_broken_adapter_files_are_refused(base, trained, tmp_path):
    with pytest.raises(InputError, match=r"adapter_config\.json does not exist"):
        load_adapter(base, tmp_path)
    save_adapter(trained, tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    del tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"]
    save_file(tensors, weights)
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.q_proj\.lora_A\.weight is missing"):
        load_adapter(base, tmp_path)
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be read"):
        load_adapter(base, tmp_path)


def test_rank_stabilised_scale_is_read(base, trained, tmp_path):
    save_adapter(trained, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_rslora": True}))
    lora = stacked_linears(load_adapter(base, tmp_path))["q_proj"].lora
    assert lora.scale == pytest.approx(6.0 / 3**0.5)
