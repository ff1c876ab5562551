"""The bridge from models to arrays: which rows, which mode, which texts; and activations from files."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hrsa_jax.embedding.encoder import Encoder
from hrsa_jax.hrsa import activations
from hrsa_jax.hrsa.activations import (
    check_same_tokens,
    compare_models,
    load_states,
    save_states,
    stream_cka,
    text_states,
    token_batches,
    token_states,
)
from hrsa_jax.hrsa.floors import model_noise_floor
from hrsa_jax.hrsa.geometry import cka_matrix
from hrsa_jax.hrsa.results import Comparison
from hrsa_jax.hrsa.states import TokenStates
from hrsa_jax.models.backbone import Backbone
from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.decoder import Decoder
from hrsa_jax.runtime.errors import InputError

WORDS = [f"w{i}" for i in range(60)]
FIELDS = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def build(seed: int = 0, *, attention: str = "causal", words: list[str] = WORDS) -> Backbone:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*words, "<pad>"])}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
    config = ModelConfig.from_hf(FIELDS)
    return Backbone(
        source=f"tiny-{seed}", config=config, decoder=Decoder(config, seed=seed), tokenizer=fast, attention=attention
    )


def make_texts(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(6, 13))) for _ in range(count)]


TEXTS = make_texts(12)


@pytest.fixture(scope="module")
def model() -> Backbone:
    return build()


@pytest.fixture
def recorded(monkeypatch):
    """What compare_models hands to compare, without measuring anything."""
    calls: list[dict] = []

    def record(tokens_a, tokens_b, **options):
        calls.append({"a": tokens_a, "b": tokens_b, **options})
        return Comparison({}, {})

    monkeypatch.setattr(activations, "compare", record)
    return calls


def test_token_rows_are_those_of_each_text_alone(model):
    states = token_states(model, TEXTS, max_tokens=10)
    for text in (0, 5, 11):
        ids, mask = model.tokenize([TEXTS[text]], max_length=10)
        rows = states.groups_N == text
        np.testing.assert_array_equal(states.token_ids_N[rows], ids[mask])
        np.testing.assert_array_equal(states.positions_N[rows], np.arange(mask.sum()))
        alone = model.hidden_states(ids, mask)[:, 0]
        np.testing.assert_allclose(states.states_LND[:, rows], alone, atol=1e-5)
    assert states.num_layers == 3  # h_0, h_1, and h_2 after the final norm
    assert states.states_LND.dtype == np.float32


def test_batches_of_few_tokens_give_the_same_rows(model, monkeypatch):
    expected = token_states(model, TEXTS).states_LND
    monkeypatch.setattr(activations, "TOKENS_PER_BATCH", 40)
    np.testing.assert_allclose(token_states(model, TEXTS).states_LND, expected, atol=1e-5)


def test_each_model_runs_in_its_own_attention_mode(model, recorded):
    both = build(attention="bidirectional")  # the same weights
    compare_models(model, both, TEXTS)
    a, b = recorded[0]["a"].states_LND, recorded[0]["b"].states_LND
    np.testing.assert_allclose(a[0], b[0], atol=1e-6)  # embeddings know no attention
    assert np.abs(a[1:] - b[1:]).max() > 1e-3
    np.testing.assert_allclose(token_states(both, TEXTS, attention="causal").states_LND, a, atol=1e-5)


def test_paper_preset_runs_both_models_in_one_mode(model, recorded):
    compare_models(model, build(attention="bidirectional"), TEXTS, preset="paper")
    np.testing.assert_allclose(recorded[0]["a"].states_LND, recorded[0]["b"].states_LND, atol=1e-6)


def test_token_texts_are_drawn_at_random_and_the_probes_get_others(model, recorded):
    texts, labels = make_texts(140, seed=1), list(range(140))
    for seed in (0, 0, 1):
        compare_models(model, model, texts, labels, max_texts=10, seed=seed)
    first, again, other = ([*recorded[i]["a"].token_ids_N] for i in range(3))
    assert first == again
    assert first != other
    assert first != [*token_states(model, texts[:10]).token_ids_N]  # not the first texts of a sorted file
    assert recorded[0]["texts_a"].shape == (3, 130, 16)
    assert len(recorded[0]["labels"]) == 130
    chosen = np.random.default_rng(0).permutation(140)[:10]
    assert not set(recorded[0]["labels"]) & set(chosen)


def test_few_texts_serve_tokens_and_probes(model, recorded):
    compare_models(model, model, TEXTS, [0, 1] * 6)
    assert recorded[0]["labels"] == [0, 1] * 6
    np.testing.assert_allclose(recorded[0]["texts_a"], text_states(model, TEXTS), atol=1e-6)


def test_token_ids_are_compared_not_their_number(model):
    other = build(words=[*WORDS[:30], "v30", *WORDS[31:]])  # as many tokens, but w30 is unknown to it
    texts = ["w1 w2 w3", "w4 w5", "w1 w30"]
    assert check_same_tokens(model, build(1), texts) is None
    assert check_same_tokens(model, other, texts) == 2


def test_other_tokenizers_fall_back_to_pooled_texts(model, recorded):
    other = build(words=[*WORDS[1:], WORDS[0]])
    result = compare_models(model, other, TEXTS)
    assert recorded[0]["a"] is None
    assert recorded[0]["texts_a"].shape == (3, len(TEXTS), 16)
    assert "tokenizers differ, first in text 0" in result.notes[0]


def test_pooled_states_use_the_encoder_as_it_is(model):
    encoder = Encoder(model, attention="bidirectional", pooling="last")
    np.testing.assert_allclose(text_states(encoder, TEXTS), encoder.hidden(TEXTS))
    assert np.abs(text_states(encoder, TEXTS) - text_states(model, TEXTS)).max() > 1e-3
    assert token_states(encoder, TEXTS).states_LND.shape == token_states(model, TEXTS).states_LND.shape


def test_activations_survive_the_disk(model, tmp_path):
    states = token_states(model, TEXTS)
    save_states(states, tmp_path / "a.safetensors")
    back = load_states(tmp_path / "a.safetensors")
    for name in ("states_LND", "groups_N", "token_ids_N", "positions_N"):
        np.testing.assert_array_equal(getattr(back, name), getattr(states, name))
    np.save(tmp_path / "plain.npy", states.states_LND)
    plain = load_states(tmp_path / "plain.npy")
    assert plain.token_ids_N is None
    assert len(set(plain.groups_N)) == states.states_LND.shape[1]


def test_files_of_activations_are_compared(model, recorded, tmp_path):
    for name in "ab":
        save_states(token_states(model, TEXTS), tmp_path / f"{name}.safetensors")
    compare_models(tmp_path / "a.safetensors", str(tmp_path / "b.safetensors"))
    assert isinstance(recorded[0]["a"], TokenStates)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: load_states(path / "none.npy"), "does not exist"),
        (lambda path: load_states(write(path / "half.safetensors", b"\x10\x00")), "cannot be read as activations"),
        (lambda path: load_states(save(path / "flat.npy", np.ones(4))), "must be .layers, rows, width"),
        (lambda path: load_states(save(path / "nan.npy", np.full((1, 3, 4), np.nan))), "NaN"),
        (lambda path: load_states(save(path / "object.npy", np.array([{}], object))), "cannot be read"),
        (
            lambda path: compare_models(save(path / "one.npy", np.ones((1, 9, 4))), build(), TEXTS),
            "activations for both",
        ),
        (lambda path: compare_models(build(), build(), TEXTS[:3]), "3 texts given"),
        (lambda path: compare_models(build(), build(), TEXTS, [1, 2]), "2 labels for 12 texts"),
        (lambda path: token_states(build(), ["w1", ""]), "Text 1 has no tokens"),
    ],
)
def test_bad_input_is_named(make, words, tmp_path):
    with pytest.raises(InputError, match=words):
        make(tmp_path)


def write(path, content: bytes):
    path.write_bytes(content)
    return path


def save(path, array: np.ndarray):
    np.save(path, array)
    return path


def test_one_layer_of_another_model_is_a_matrix(tmp_path):
    assert load_states(save(tmp_path / "one.npy", np.ones((3, 4)))).states_LND.shape == (1, 3, 4)


def test_the_store_gives_the_same_states_without_the_model(model, tmp_path, monkeypatch):
    made = token_states(model, TEXTS, store=tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 1
    monkeypatch.setattr(activations, "token_batches", None)  # running it again would fail
    kept = token_states(model, TEXTS, store=tmp_path / "kept")
    for name in ("states_LND", "groups_N", "token_ids_N", "positions_N"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(made, name))
    for change in ({"max_tokens": 5}, {"attention": "bidirectional"}, {"dtype": "bfloat16"}):
        with pytest.raises(TypeError):
            token_states(model, TEXTS, store=tmp_path / "kept", **change)  # other settings are other states
    with pytest.raises(TypeError):
        token_states(build(1), TEXTS, store=tmp_path / "kept")


def test_a_damaged_store_is_made_again(model, tmp_path):
    expected = token_states(model, TEXTS, store=tmp_path)
    file = next(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:100])
    np.testing.assert_array_equal(token_states(model, TEXTS, store=tmp_path).states_LND, expected.states_LND)


def test_batches_keep_to_their_budget_and_hold_every_token_once(model):
    batches = list(token_batches(model, TEXTS, batch_tokens=40))
    assert len(batches) > 3
    assert max(len(batch.groups_N) for batch in batches) <= 40
    rows = sum(len(batch.groups_N) for batch in batches)
    assert rows == token_states(model, TEXTS).states_LND.shape[1]


@pytest.mark.parametrize("pairs", ["all", "matching"])
def test_streamed_cka_equals_that_of_stored_states(model, monkeypatch, pairs):
    monkeypatch.setattr(activations, "TOKENS_PER_BATCH", 40)
    other = build(1)
    a, b = token_states(model, TEXTS), token_states(other, TEXTS)
    keep = a.positions_N > 0  # tiny random models have no other sinks
    expected = np.asarray(cka_matrix(a.states_LND[:, keep], b.states_LND[:, keep]))
    expected = np.diag(expected) if pairs == "matching" else expected
    np.testing.assert_allclose(stream_cka(model, other, TEXTS, pairs=pairs), expected, atol=1e-5)
    with pytest.raises(InputError, match="text 0 different token ids"):
        stream_cka(model, build(words=[*WORDS[1:], WORDS[0]]), TEXTS)


def test_noise_floor_of_a_model(model):
    floor = model_noise_floor(model, TEXTS)
    assert list(floor) == ["bfloat16", "one text a batch", "longer padding"]
    for name in ("one text a batch", "longer padding"):
        np.testing.assert_allclose(floor[name].measures["cka"].value, 1, atol=1e-4)
    rounded = floor["bfloat16"].measures["correlation"].value
    assert np.all((rounded > 0.99) & (rounded <= 1))


def test_states_are_computed_in_the_precision_that_was_asked(model):
    full, rounded = token_states(model, TEXTS), token_states(model, TEXTS, dtype="bfloat16")
    ids, mask = model.tokenize([TEXTS[0]])
    own = model.hidden_states(ids, mask)[:, 0]
    rows = full.groups_N == 0
    assert np.abs(full.states_LND[:, rows] - own).max() < 1e-5
    assert 1e-4 < np.abs(rounded.states_LND[1:, rows] - own[1:]).max() < 0.1
    assert rounded.states_LND.dtype == np.float32
