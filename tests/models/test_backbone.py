"""Backbone: tokenising, states, logits, generation, export, fingerprint, and the settings of embedding models."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from tiny_models import assert_close, hf_model, save_with_tokenizer

import hrsa_jax
from hrsa_jax.models.sentence_transformers_files import EmbeddingSettings
from hrsa_jax.runtime.errors import InputError

TEXTS = ["the quick brown fox", "lazy", "jumps over the dog : 12345"]


@pytest.fixture(scope="module")
def backbone(model_folder):
    return hrsa_jax.load(model_folder)


def reference(folder, ids, mask):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        out = model(torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long(), output_hidden_states=True)
    return np.stack([h.numpy() for h in out.hidden_states]), out.logits.numpy()


def test_tokens_states_and_logits_equal_transformers(backbone, model_folder):
    ids, mask = backbone.tokenize(TEXTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    expected = tokenizer(TEXTS, padding=True, padding_side="right", return_tensors="np")
    np.testing.assert_array_equal(ids, expected["input_ids"])
    np.testing.assert_array_equal(mask, expected["attention_mask"].astype(bool))
    assert (ids.dtype, mask.dtype) == (np.int32, np.bool_)
    states, logits = backbone.hidden_states(ids, mask), backbone.logits(ids, mask)
    expected_states, expected_logits = reference(model_folder, ids, mask)
    assert states.shape == (4, *ids.shape, 32)
    assert (states.dtype, logits.dtype) == (np.float32, np.float32)
    for ours, theirs in zip(states, expected_states, strict=True):
        assert_close(ours[mask], theirs[mask])
    assert_close(logits[mask], expected_logits[mask])
    assert not states[:, ~mask].any()
    assert backbone.attention == "causal"
    assert np.abs(backbone.hidden_states(ids, mask, attention="bidirectional") - states).max() > 1e-3


def test_tokenize_cuts_and_refuses(backbone):
    ids, _ = backbone.tokenize(TEXTS, max_length=3)
    assert ids.shape == (3, 3)
    assert backbone.tokenize([""])[1].sum() == 1  # the tokenizer's own <s>
    for texts, message in (([], "no texts"), (["a", None], "text 1 is NoneType"), ([b"a"], "text 0 is bytes")):
        with pytest.raises(InputError, match=message):
            backbone.tokenize(texts)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[1, 2]], [[True]], "two equal"),
        ([[0, 2]], [[False, True]], "pad on the right"),
        ([[5, 97]], [[True, True]], "token id 97 is outside"),
        ([[5, -1]], [[True, True]], "token id -1 is outside"),
    ],
)
def test_bad_inputs_are_refused(backbone, ids, mask, message):
    with pytest.raises(InputError, match=message):
        backbone.hidden_states(ids, mask)


def test_export_round_trip(backbone, tmp_path):
    backbone.export(tmp_path)
    ids, mask = backbone.tokenize(TEXTS)
    assert_close(backbone.logits(ids, mask)[mask], reference(tmp_path, ids, mask)[1][mask])
    again = hrsa_jax.load(tmp_path)
    np.testing.assert_array_equal(again.logits(ids, mask), backbone.logits(ids, mask))
    assert again.tokenize(TEXTS)[0].tolist() == ids.tolist()
    assert again.stop_token_ids == backbone.stop_token_ids == (2,)


def test_fingerprint_covers_weights_config_and_tokenizer(backbone, model_folder, own_folder):
    again = hrsa_jax.load(own_folder)
    again.tokenize(TEXTS, max_length=3)  # leaves its truncation in the tokenizer
    assert backbone.fingerprint == again.fingerprint
    assert len(backbone.fingerprint) == 16
    config = json.loads((own_folder / "config.json").read_text())
    (own_folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert hrsa_jax.load(own_folder).fingerprint != backbone.fingerprint
    other = backbone.with_decoder(backbone.decoder, "trained")
    assert (other.source, other.tokenizer) == ("trained", backbone.tokenizer)
    assert other.fingerprint not in ("", backbone.fingerprint)


def test_generation_is_greedy_and_stops(backbone, model_folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder).eval()
    ids = backbone.tokenizer(TEXTS[:1], return_tensors="pt")
    expected = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
    found = backbone.generate(TEXTS[:1], max_new_tokens=8)
    assert found == [backbone.tokenizer.decode(expected, skip_special_tokens=True)]
    assert backbone.generate([], max_new_tokens=8) == []


def test_generation_config_adds_stop_ids(own_folder):
    (own_folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 2]}))
    assert hrsa_jax.load(own_folder).stop_token_ids == (2, 5)


@pytest.mark.parametrize("spelling", ["new", "old"])
def test_sentence_transformers_settings(spelling, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    folder = save_with_tokenizer(hf_model("qwen3"), tmp_path / "hf")
    stock = SentenceTransformer(
        modules=[Transformer(str(folder), max_seq_length=33), Pooling(32, pooling_mode="lasttoken"), Normalize()],
        prompts={"query": "Query: ", "document": ""},
        device="cpu",
    )
    stock.save(str(tmp_path / "st"))
    if spelling == "old":
        (tmp_path / "st/1_Pooling/config.json").write_text(
            json.dumps({"word_embedding_dimension": 32, "pooling_mode_lasttoken": True, "include_prompt": False})
        )
        (tmp_path / "st/sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 33}))
    settings = hrsa_jax.load(tmp_path / "st").embedding
    assert settings == EmbeddingSettings(
        pooling="last",
        normalize=True,
        prompts={"query": "Query: ", "document": ""},
        max_length=33,
        include_prompt=spelling == "new",
    )


def test_importing_the_package_is_light():
    code = (
        "import sys, hrsa_jax; heavy = {'jax', 'torch', 'transformers', 'mteb', 'datasets', 'gguf', 'ml_collections'};"
        "print(sorted(heavy & set(sys.modules)));"
        "import hrsa_jax.models.backbone; print(sorted((heavy - {'jax'}) & set(sys.modules)));"
        "print(sorted(set(dir(hrsa_jax)) & {'load', 'Backbone', 'Encoder', 'compare'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=True)
    assert out.stdout.split("\n")[:3] == ["[]", "[]", "['Backbone', 'Encoder', 'compare', 'load']"]
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = hrsa_jax.lod
