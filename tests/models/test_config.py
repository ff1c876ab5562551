"""ModelConfig: both spellings of config.json, defaults, round trips, and refusals by field name."""

import json

import pytest
import transformers
from tiny_models import CLASSES, SIZES, VARIANTS

from hrsa_jax.models.config import ModelConfig
from hrsa_jax.runtime.errors import InputError

LLAMA = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def hf_config(variant):
    family, changes = VARIANTS[variant]
    return getattr(transformers, CLASSES[family] + "Config")(**(SIZES | changes))


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_transformers_writes_is_read_and_written_back(variant):
    config = hf_config(variant)
    read = ModelConfig.from_hf(json.loads(config.to_json_string(use_diff=False)))
    assert ModelConfig.from_hf(json.loads(config.to_json_string(use_diff=True))) == read
    again = getattr(transformers, type(config).__name__)(**read.to_hf())
    assert ModelConfig.from_hf(json.loads(again.to_json_string(use_diff=False))) == read
    assert ModelConfig.from_hf(json.loads(json.dumps(read.to_hf()))) == read


def test_older_spellings():
    old = LLAMA | {
        "rope_theta": 5e5,
        "rope_scaling": {
            "type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "torch_dtype": "bfloat16",
        "pretraining_tp": 1,
        "transformers_version": "4.43.0",
    }
    new = LLAMA | {
        "rope_parameters": old["rope_scaling"] | {"rope_type": "llama3", "rope_theta": 5e5},
        "dtype": "bfloat16",
    }
    assert ModelConfig.from_hf(old) == ModelConfig.from_hf(new)
    assert ModelConfig.from_hf(old).rope.original_max_position_embeddings == 8192


def test_defaults_are_those_of_transformers():
    assert ModelConfig.from_hf(LLAMA).num_kv_heads == 4
    assert ModelConfig.from_hf(LLAMA).head_dim == 8
    assert ModelConfig.from_hf(LLAMA).eos_token_ids == (2,)
    mistral = ModelConfig.from_hf(LLAMA | {"model_type": "mistral", "num_attention_heads": 16, "hidden_size": 64})
    assert (mistral.num_kv_heads, mistral.windows) == (8, (4096, 4096))
    explicit = {"model_type": "mistral", "num_key_value_heads": 4, "sliding_window": None}
    assert ModelConfig.from_hf(LLAMA | explicit).windows == (None, None)
    qwen3 = ModelConfig.from_hf(LLAMA | {"model_type": "qwen3", "num_key_value_heads": 2})
    assert (qwen3.head_dim, qwen3.qk_norm, qwen3.qkv_bias) == (128, True, False)
    qwen2 = ModelConfig.from_hf(LLAMA | {"model_type": "qwen2", "sliding_window": 7})
    assert (qwen2.windows, qwen2.qkv_bias, qwen2.output_bias) == ((None, None), True, False)
    assert ModelConfig.from_hf(LLAMA | {"eos_token_id": [5, 6], "pad_token_id": -1}).eos_token_ids == (5, 6)


def test_layer_types_and_max_window_layers_agree():
    qwen = LLAMA | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 9}
    by_count = ModelConfig.from_hf(qwen | {"max_window_layers": 1})
    by_type = ModelConfig.from_hf(qwen | {"layer_types": ["full_attention", "sliding_attention"]})
    assert by_count.windows == by_type.windows == (None, 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": None}, "model_type is missing"),
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"model_type": "qwen3_moe"}, "model_type is 'qwen3_moe'"),
        ({"num_local_experts": 8}, "num_local_experts is 8: mixture-of-experts"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"hidden_size": 33}, "hidden_size 33 is not a multiple"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"is_causal": 0}, "is_causal is 0"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is set"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map points to remote code"),
        ({"logit_scale": 0.5}, "logit_scale are not known for llama"),
        ({"sliding_window": 9}, "sliding_window are not known for llama"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder is true"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures is"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope_type is 'longrope'"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": "linear"}, "rope_parameters is 'linear'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 1}}, "beta_fast, which rope_type 'linear'"),
        ({"rope_interleaved": True}, "rope_interleaved is true"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
            "high_freq_factor 1.0 must be larger",
        ),
        ({"layer_types": ["chunked_attention"] * 2}, "layer_types has"),
        ({"model_type": "mistral", "num_key_value_heads": 2, "attention_bias": True}, "attention_bias is true"),
        ({"model_type": "qwen2", "attention_bias": False}, "attention_bias is false"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "layer_types has 1 entries"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2}, "use_sliding_window or sliding_window"),
    ],
)
def test_refusals_name_the_file_and_the_field(changes, message):
    with pytest.raises(InputError) as caught:
        ModelConfig.from_hf(LLAMA | changes, "some/config.json")
    assert message in str(caught.value)
    assert str(caught.value).startswith("some/config.json: ")
    assert "\n" not in str(caught.value)
