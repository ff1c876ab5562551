"""GGUF files written here with the gguf package: equal to their HF twins, and refused when damaged."""

import gguf
import jax
import numpy as np
import pytest
from gguf import quants
from tiny_models import hf_model, load_decoder, our_states, right_padded, save

from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.gguf import GGUFFile, config_fields, unpermute
from hrsa_jax.models.rope import inverse_frequencies
from hrsa_jax.models.weights import GGUFCheckpoint, load_weights, tensor_names
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.mesh import make_mesh

KIND = gguf.GGMLQuantizationType


def permute(weight, heads):
    """What llama.cpp's converter does to q and k of llama models."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write(model, path, *, kind=KIND.F32, extra=(), tensors=(), skip=()):
    """A GGUF file of a transformers model, as llama.cpp's converter writes it."""
    from hrsa_jax.models.families import FAMILIES

    config = ModelConfig.from_hf(model.config.to_dict())
    family = model.config.model_type
    architecture = "llama" if family == "mistral" else family
    writer = gguf.GGUFWriter(path, architecture)
    facts = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "vocab_size": config.vocab_size,
    }
    if family == "qwen3":
        facts |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if architecture == "llama":
        facts["rope.dimension_count"] = config.head_dim
    for key, value in facts.items():
        if key not in skip:
            writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32(f"{architecture}.rope.freq_base", config.rope.theta)
    writer.add_uint32("tokenizer.ggml.bos_token_id", 1)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 2)
    for add, key, value in extra:
        getattr(writer, add)(key, value)
    state = model.state_dict()
    for rule in FAMILIES[family].tensors.values():
        names = zip(tensor_names(config, rule, style="hf"), tensor_names(config, rule, style="gguf"), strict=True)
        for hf_name, name in names:
            if hf_name not in state or (hf_name == "lm_head.weight" and config.tie_word_embeddings):
                continue
            values = state[hf_name].numpy().astype(np.float32)
            if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
                values = permute(values, config.num_heads if ".attn_q." in name else config.num_kv_heads)
            if kind != KIND.F32 and values.ndim == 2:
                writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, values)
    for name, values in tensors:
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(path):
    file = GGUFFile(path)
    config = ModelConfig.from_hf(config_fields(file), str(path))
    return load_weights(config, GGUFCheckpoint(file, config), where=str(path))


@pytest.mark.parametrize("variant", ["llama", "llama-tied-mha-biases", "qwen2", "qwen3", "mistral-full"])
def test_a_gguf_file_equals_its_hf_twin(variant, tmp_path):
    changes = {"mlp_bias": False} if "biases" in variant else {}
    model = hf_model(variant, **changes)
    twin = load_decoder(save(model, tmp_path / "hf"))
    decoder = load(write(model, tmp_path / "m.gguf"))
    tokens, mask = right_padded([8, 5])
    ours, expected = (our_states(d, tokens, mask, "causal") for d in (decoder, twin))
    np.testing.assert_allclose(ours[0], expected[0], atol=1e-6)
    np.testing.assert_allclose(ours[1], expected[1], atol=1e-5)


def test_a_gguf_file_goes_into_shardings_too(tmp_path):
    path = write(hf_model("llama", vocab_size=96), tmp_path / "m.gguf")
    file = GGUFFile(path)
    config = ModelConfig.from_hf(config_fields(file), str(path))
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    sharded = load_weights(config, GGUFCheckpoint(file, config, keep=True), where=str(path), mesh=mesh)
    assert sharded.embed[...].addressable_shards[0].data.shape == (12, 32)
    for ours, whole in zip(jax.tree.leaves(sharded), jax.tree.leaves(load(path)), strict=True):
        np.testing.assert_array_equal(ours, whole)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"])
def test_tensor_types_decode_as_the_gguf_package_decodes_them(kind, tmp_path):
    model = hf_model("qwen2", intermediate_size=64, hidden_size=64)
    file = GGUFFile(write(model, tmp_path / "m.gguf", kind=KIND[kind]))
    values = model.state_dict()["model.layers.1.mlp.up_proj.weight"].numpy()
    expected = quants.dequantize(quants.quantize(values, KIND[kind]), KIND[kind])
    found = file.read("blk.1.ffn_up.weight")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_k_quants_are_handed_to_the_gguf_package(tmp_path):
    rng = np.random.default_rng(0)
    for kind in (KIND.Q2_K, KIND.Q3_K, KIND.Q4_K, KIND.Q5_K, KIND.Q6_K):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        raw = rng.integers(0, 60, (3, 2 * size), dtype=np.uint8)
        writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
        writer.add_tensor("x", raw, raw_dtype=kind)
        for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
            getattr(writer, step)()
        found = GGUFFile(tmp_path / "k.gguf").read("x")
        assert found.shape == (3, 2 * block)
        np.testing.assert_array_equal(found, quants.dequantize(raw, kind))


def test_unpermute_undoes_permute():
    weight = np.random.default_rng(0).normal(size=(24, 5))
    np.testing.assert_array_equal(unpermute(permute(weight, 3), 3), weight)


def test_llama3_bands_are_recovered_from_rope_freqs(tmp_path):
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = hf_model("llama", rope_parameters=scaling, head_dim=32, max_position_embeddings=131072)
    rope = ModelConfig.from_hf(model.config.to_dict()).rope
    plain = (1 / 5e5 ** (np.arange(0, 32, 2) / 32)).astype(np.float32)
    divisors = (plain / inverse_frequencies(rope, 32)[0]).astype(np.float32)
    path = write(model, tmp_path / "m.gguf", tensors=[("rope_freqs.weight", divisors)])
    assert load(path).config.rope == rope
    wrong = write(model, tmp_path / "w.gguf", tensors=[("rope_freqs.weight", divisors**2)])
    with pytest.raises(InputError, match=r"rope_freqs\.weight is not"):
        load(wrong)


def test_yarn_causal_flag_and_pooling(tmp_path):
    path = write(
        hf_model("qwen3"),
        tmp_path / "m.gguf",
        extra=[
            ("add_string", "qwen3.rope.scaling.type", "yarn"),
            ("add_float32", "qwen3.rope.scaling.factor", 4.0),
            ("add_uint32", "qwen3.rope.scaling.original_context_length", 16),
            ("add_bool", "qwen3.attention.causal", False),
            ("add_uint32", "qwen3.pooling_type", 3),
        ],
    )
    file = GGUFFile(path)
    config = ModelConfig.from_hf(config_fields(file))
    assert (config.rope.kind, config.rope.factor, config.rope.original_max_position_embeddings) == ("yarn", 4.0, 16)
    assert not config.is_causal
    assert file.pooling() == "last"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b"", "is empty"),
        (lambda b: b"FUGG" + b[4:], "does not begin with the letters GGUF"),
        (lambda b: b[:4] + b"\x01" + b[5:], "GGUF version 1"),
        (lambda b: b[:10], "truncated"),
        (lambda b: b[:300], "truncated"),
        (lambda b: b[:-2000], "is truncated: "),
        (lambda b: b.replace(b"llama", b"lxama"), "general.architecture is 'lxama'"),
        (lambda b: b.replace(b"llama.block_count", b"llama.clock_count"), "llama.clock_count is not supported"),
        (lambda b: b.replace(b"blk.0.ffn_up.weight", b"blk.0.ffn_xx.weight"), "blk.0.ffn_up.weight is missing"),
    ],
)
def test_damaged_files_are_refused_by_name(damage, message, tmp_path):
    path = write(hf_model("llama"), tmp_path / "m.gguf")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError) as caught:
        load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mixture_of_experts_and_missing_facts_are_refused(tmp_path):
    path = write(hf_model("llama"), tmp_path / "a.gguf", extra=[("add_uint32", "llama.expert_count", 8)])
    with pytest.raises(InputError, match="num_experts is 8: mixture-of-experts"):
        load(path)
    path = write(hf_model("llama"), tmp_path / "b.gguf", skip=("feed_forward_length",))
    with pytest.raises(InputError, match="intermediate_size is missing"):
        load(path)
