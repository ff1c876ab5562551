"""The bridge to mteb, trap by trap (what goes wrong silently when an encoder is wrapped carelessly)."""

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from hrsa_jax.evaluation import mteb_encoder
from hrsa_jax.evaluation.baselines import HashedBagOfWords
from hrsa_jax.evaluation.mteb_encoder import MTEBEncoder


class Recorder:
    """A bag of words that remembers what it was asked, with prompts counted as words."""

    fingerprint, attention, max_length, dimension = "recorder", "bidirectional", 128, 64

    def __init__(self, dtype=np.float32):
        self.calls = []
        self.dtype = dtype
        self._bag = HashedBagOfWords(64)

    def encode(self, texts, prompt=None):
        self.calls.append((tuple(texts), prompt))
        return self._bag.encode([(prompt or "") + text for text in texts]).astype(self.dtype)

    @property
    def texts(self):
        return [text for texts, _ in self.calls for text in texts]


def task(kind="STS", name="T", prompt=None):
    return SimpleNamespace(name=name, type=kind, prompt=prompt)


def encode(model, texts, *, prompt_type=None, **kind):
    batches = [{"text": texts[i : i + 2]} for i in range(0, len(texts), 2)]
    return model.encode(batches, task_metadata=task(**kind), hf_split="test", hf_subset="d", prompt_type=prompt_type)


def test_satisfies_the_protocols_mteb_checks_at_run_time():
    from mteb.models.models_protocols import CrossEncoderProtocol, EncoderProtocol, SearchProtocol

    model = MTEBEncoder("m", Recorder())
    assert isinstance(model, EncoderProtocol)
    assert isinstance(model, SearchProtocol)
    assert not isinstance(model, CrossEncoderProtocol)


def test_each_distinct_text_is_encoded_once_per_prompt():
    recorder = Recorder()
    model = MTEBEncoder("m", recorder)
    vectors = encode(model, ["a b", "c", "a b", "c", "a b"])
    np.testing.assert_array_equal(vectors[0], vectors[4])
    encode(model, ["c", "d"])  # the same task type, so the same prompt
    assert recorder.texts == ["a b", "c", "d"]
    encode(model, ["c"], kind="Clustering")  # another instruction: another vector
    assert recorder.texts == ["a b", "c", "d", "c"]
    assert model.texts_encoded == 4


def test_results_are_float32_numpy_whatever_the_encoder_returns():
    for dtype in (np.float64, np.float16, ml_dtypes.bfloat16):
        vectors = encode(MTEBEncoder("m", Recorder(dtype)), ["a b", "c"])
        assert type(vectors) is np.ndarray
        assert vectors.dtype == np.float32


def test_jax_arrays_become_numpy():
    import jax.numpy as jnp

    recorder = Recorder()
    model = MTEBEncoder("m", recorder)
    recorder.encode = lambda texts, prompt=None: jnp.ones((len(texts), 3), jnp.bfloat16)
    assert type(encode(model, ["x"])) is np.ndarray


def test_vectors_that_are_not_finite_stop_the_task():
    recorder = Recorder()
    model = MTEBEncoder("m", recorder)
    recorder.encode = lambda texts, prompt=None: np.array([[1.0], [np.nan], [np.inf]], np.float32)
    with pytest.raises(FloatingPointError, match="2 vectors with NaN or infinity in T, the first for 'bad one'"):
        encode(model, ["fine", "bad one", "worse"])


def test_a_wrong_number_of_vectors_is_named():
    recorder = Recorder()
    recorder.encode = lambda texts, prompt=None: np.zeros((1, 4), np.float32)
    with pytest.raises(ValueError, match=r"shape \(1, 4\) for 2 texts of T"):
        encode(MTEBEncoder("m", recorder), ["a", "b"])


def test_queries_carry_the_instruction_documents_are_bare_symmetric_tasks_carry_it():
    from mteb.types import PromptType

    model = MTEBEncoder("m", Recorder(), instructions={"Special": "do this"})
    own = {"query": "find it"}
    assert model.prompt(task("Retrieval", prompt=own), PromptType.query) == "Instruct: find it\nQuery:\n"
    assert model.prompt(task("Retrieval", prompt=own), PromptType.document) == ""
    assert model.prompt(task("STS", prompt="same meaning"), None) == "Instruct: same meaning\nQuery:\n"
    assert model.prompt(task("Retrieval", "Special", own), PromptType.query) == "Instruct: do this\nQuery:\n"
    assert "Classify" in model.prompt(task("Classification"), None)
    assert model.prompt(task("Unheard"), None) == ""


def test_revision_is_a_hash_of_all_that_decides_the_vectors():
    def revision(*, template=mteb_encoder.QUERY_TEMPLATE, instructions=None, **changed):
        recorder = Recorder()
        vars(recorder).update(changed)
        return MTEBEncoder("m", recorder, template=template, instructions=instructions).revision

    revisions = [
        revision(),
        revision(fingerprint="other"),
        revision(attention="causal"),
        revision(max_length=64),
        revision(template="Q: {instruction}"),
        revision(instructions={"T": "x"}),
    ]
    assert len(set(revisions)) == len(revisions)
    assert revision() == revisions[0]


def test_names_have_a_slash_and_seeds_have_names_of_their_own():
    metas = [MTEBEncoder(name, Recorder()).mteb_model_meta for name in ("base-Emb-s0", "base-Emb-s1", "org/x")]
    assert [m.name for m in metas] == ["hrsa_jax/base-Emb-s0", "hrsa_jax/base-Emb-s1", "org/x"]
    assert metas[0].revision == metas[1].revision


def test_the_cache_is_bounded_and_answers_stay_right():
    recorder = Recorder()
    model = MTEBEncoder("m", recorder, cache_bytes=2000)
    texts = [f"text number {i}" for i in range(40)]
    for text in texts:
        encode(model, [text])
    assert model._cache_bytes <= 2000
    assert len(model._cache) < 40
    fresh = MTEBEncoder("m", Recorder())
    np.testing.assert_array_equal(encode(model, texts), encode(fresh, texts))


def test_similarity_is_the_cosine_and_zero_vectors_are_unlike_everything():
    model = MTEBEncoder("m", Recorder())
    a = np.array([[3.0, 0.0], [0.0, 0.0]], np.float32)
    b = np.array([[1.0, 1.0], [5.0, 0.0]], np.float32)
    np.testing.assert_allclose(model.similarity(a, b).numpy(), [[np.sqrt(0.5), 1.0], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(model.similarity_pairwise(a, b).numpy(), [np.sqrt(0.5), 0], rtol=1e-6)


def test_a_large_index_lies_in_a_file(monkeypatch):
    monkeypatch.setattr(mteb_encoder, "_MEMORY_BYTES", 64)
    storage = mteb_encoder._storage(100, 8)
    assert isinstance(storage, np.memmap)
    storage[:] = 3.0
    assert float(storage[99, 7]) == 3.0


def test_search_needs_an_index():
    with pytest.raises(ValueError, match="before index"):
        MTEBEncoder("m", Recorder()).search([], task_metadata=task(), hf_split="t", hf_subset="d", top_k=1)


def test_stored_prompts_follow_the_rule_of_mteb_and_change_the_revision():
    prompts = {"query": "Q: ", "STS": "Same: ", "T-query": "T's own: "}
    model = MTEBEncoder("m", Recorder(), prompts=prompts)
    assert model.prompt(task("Retrieval", "Other"), "query") == "Q: "
    assert model.prompt(task("Retrieval", "T"), "query") == "T's own: "
    assert model.prompt(task("Retrieval", "T"), "document") == ""
    assert model.prompt(task("STS", "Other"), None) == "Same: "
    assert model.prompt(task("Clustering", "Other", "an instruction"), None) == ""
    assert model.revision != MTEBEncoder("m", Recorder()).revision
    assert model.revision != MTEBEncoder("m", Recorder(), prompts={}).revision
