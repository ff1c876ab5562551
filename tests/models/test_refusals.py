"""Broken model folders: each gives one sentence that names the file and what is wrong with it."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hrsa_jax.models.backbone import load
from hrsa_jax.runtime.errors import InputError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def edit(name, **changes):
    """Changes fields of a JSON file; None removes one."""

    def apply(folder):
        content = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return apply


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def tensors(change):
    """Rewrites the weights after `change(dict)`."""

    def apply(folder):
        content = load_file(folder / WEIGHTS)
        change(content)
        save_file(content, folder / WEIGHTS)

    return apply


def cut(name, size):
    """Keeps the first `size` bytes (or all but the last -size)."""

    def apply(folder):
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[:size])

    return apply


def rename(old, new):
    return lambda folder: (folder / old).rename(folder / new)


def index(weight_map):
    """An index in place of the single file, which becomes a shard."""

    def apply(folder):
        names = list(load_file(folder / WEIGHTS))
        (folder / WEIGHTS).rename(folder / "a.safetensors")
        full = weight_map if not callable(weight_map) else weight_map(names)
        (folder / INDEX).write_text(json.dumps({"weight_map": full}))

    return apply


def poison(value, dtype=np.float32):
    def change(content):
        content["model.norm.weight"] = content["model.norm.weight"].astype(dtype)
        content["model.norm.weight"][3] = value

    return change


def looped(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / WEIGHTS)


def bigger_tokenizer(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["zzzz"] = 400
    (folder / "tokenizer.json").write_text(json.dumps(content))


def no_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def pickle_only(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def modules(extra=(), pooling=None):
    def apply(folder):
        (folder / "modules.json").write_text(json.dumps([*MODULES, *extra]))
        (folder / "1_Pooling").mkdir()
        if pooling is not None:
            (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))

    return apply


HUGE = (2**40).to_bytes(8, "little")
CASES = {
    "config missing": (lambda f: (f / "config.json").unlink(), "neither config.json nor a .gguf"),
    "config empty": (text("config.json", ""), "config.json cannot be read as JSON"),
    "config cut in half": (cut("config.json", 100), "config.json cannot be read as JSON"),
    "config not UTF-8": (lambda f: (f / "config.json").write_bytes(b'{"a": "\xff\xfe"}'), "config.json cannot be read"),
    "config a list": (text("config.json", "[1, 2]"), "config.json holds list"),
    "unknown family": (edit("config.json", model_type="gpt_neox"), "model_type is 'gpt_neox'"),
    "mixture of experts": (edit("config.json", model_type="qwen3_moe", num_experts=4), "num_experts is 4"),
    "unknown rope": (
        edit("config.json", rope_parameters={"rope_type": "longrope", "factor": 2.0}),
        "rope_type is 'longrope'",
    ),
    "unknown field": (edit("config.json", attn_logit_softcapping=30.0), "attn_logit_softcapping are not known"),
    "remote code": (edit("config.json", auto_map={"AutoModel": "m.M"}), "auto_map points to remote code"),
    "quantised": (edit("config.json", quantization_config={"bits": 4}), "quantization_config is set"),
    "field of the wrong type": (edit("config.json", num_hidden_layers="3"), "num_hidden_layers is '3'"),
    "weights missing": (lambda f: (f / WEIGHTS).unlink(), "has no weights"),
    "weights renamed": (rename(WEIGHTS, "weights.safetensors"), "has weights.safetensors but neither"),
    "pickle only": (pickle_only, "only pickle weights (pytorch_model.bin), which are never read"),
    "adapter only": (rename(WEIGHTS, "adapter_model.safetensors"), "holds a LoRA adapter and no model"),
    "weights a loop of links": (looped, "model.safetensors"),
    "weights empty": (cut(WEIGHTS, 0), "model.safetensors is empty"),
    "header truncated": (cut(WEIGHTS, 500), "model.safetensors has no readable safetensors header"),
    "data truncated": (cut(WEIGHTS, -4), "model.safetensors is truncated"),
    "not safetensors": (text(WEIGHTS, "<html>404</html>" * 9), "model.safetensors has no readable safetensors header"),
    "header length absurd": (lambda f: (f / WEIGHTS).write_bytes(HUGE + b"{}"), "no readable safetensors header"),
    "tensor missing": (tensors(lambda t: t.pop("model.layers.1.mlp.up_proj.weight")), "up_proj.weight is missing"),
    "tensor misshapen": (
        tensors(lambda t: t.update({"model.norm.weight": np.ones(31, np.float32)})),
        "model.norm.weight has shape (31,)",
    ),
    "tensor unexpected": (
        tensors(lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.ones(32, np.float32)})),
        "q_proj.bias is not part of a llama model",
    ),
    "one layer too many": (edit("config.json", num_hidden_layers=2), "model.layers.2"),
    "vocabulary of config and weights": (edit("config.json", vocab_size=96), "embed_tokens.weight has shape (97, 32)"),
    "integer weights": (
        tensors(lambda t: t.update({"model.norm.weight": np.ones(32, np.int8)})),
        "model.norm.weight is stored as I8",
    ),
    "NaN": (tensors(poison(np.nan)), "model.norm.weight holds NaN or infinite values"),
    "infinity in half precision": (
        tensors(poison(np.inf, ml_dtypes.bfloat16)),
        "model.norm.weight holds NaN or infinite values",
    ),
    "shard missing": (index({"model.norm.weight": "b.safetensors"}), "lacks b.safetensors"),
    "index pointing to itself": (index({"model.norm.weight": INDEX}), f"sends model.norm.weight to '{INDEX}'"),
    "index leaving the folder": (index({"x": "../a.safetensors"}), "sends x to '../a.safetensors'"),
    "index promising too much": (
        index(lambda names: dict.fromkeys([*names, "model.extra"], "a.safetensors")),
        "a.safetensors does not hold model.extra",
    ),
    "index without a map": (index({}), "has no weight_map"),
    "tokenizer missing": (no_tokenizer, "has no tokenizer"),
    "tokenizer broken": (cut("tokenizer.json", 200), "the tokenizer in"),
    "tokenizer of another model": (bigger_tokenizer, "gives ids up to 400 but vocab_size is 97"),
    "dense layer after pooling": (
        modules(extra=[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}], pooling={}),
        "modules.json lists Transformer, Pooling, Dense",
    ),
    "max pooling": (modules(pooling={"pooling_mode_max_tokens": True}), "pooling is 'max'"),
    "two poolings": (
        modules(pooling={"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}),
        "pooling is ['mean', 'cls']",
    ),
    "pooling config missing": (modules(), "config.json cannot be read"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_folder_gives_one_sentence(case, own_folder):
    damage, message = CASES[case]
    damage(own_folder)
    with pytest.raises(InputError) as caught:
        load(own_folder)
    said = str(caught.value)
    assert message in said
    assert str(own_folder) in said
    assert "\n" not in said


def test_all_mismatches_are_reported_at_once(own_folder):
    def change(content):
        content.pop("model.layers.0.mlp.up_proj.weight")
        content.pop("model.layers.2.mlp.up_proj.weight")
        content["model.norm.weight"] = np.ones(5, np.float32)
        content["stray"] = np.ones(5, np.float32)

    tensors(change)(own_folder)
    with pytest.raises(InputError, match=r"in 4 tensor\(s\)") as caught:
        load(own_folder)
    for name in ("layers.0.mlp.up_proj", "layers.2.mlp.up_proj", "model.norm.weight", "stray"):
        assert name in str(caught.value)


def test_there_are_enough_cases_and_the_whole_folder_loads(model_folder, tmp_path):
    assert len(CASES) >= 25
    shutil.copytree(model_folder, tmp_path / "whole")
    assert load(tmp_path / "whole").num_parameters > 0
