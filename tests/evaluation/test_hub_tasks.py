"""Real mteb tasks of every type that takes text, on local copies of their data sets in the hub's layout."""

import datasets
import hub_folders
import numpy as np
import pytest
from tiny import write_model

from hrsa_jax.embedding.encoder import Encoder
from hrsa_jax.embedding.export import export_sentence_transformers
from hrsa_jax.evaluation.baselines import HashedBagOfWords
from hrsa_jax.evaluation.mteb_encoder import MTEBEncoder
from hrsa_jax.evaluation.offline_tasks import write_data_set
from hrsa_jax.evaluation.suites import run_tasks, suite
from hrsa_jax.models.backbone import load

TYPES = set(hub_folders.TASKS.values())


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Copies of hub data sets; `datasets` keeps its cache beside them."""
    root = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield hub_folders.write(root)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A random two-layer model as a sentence-transformers folder, bidirectional, 40 tokens at most."""
    folder = tmp_path_factory.mktemp("model")
    return export_sentence_transformers(
        load(write_model(folder / "backbone")),
        folder / "exported",
        pooling="mean",
        normalize=True,
        prompts={"query": "Find: \n"},
        max_length=120,
        attention="bidirectional",
        card="test",
    )


def tasks_of(hub, names=hub_folders.TASKS):
    return [task for name in names for task in suite(name, data_folder=hub).tasks()]


def scores_of_sentence_transformers(exported, hub, prompts):
    import mteb
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformerEncoderWrapper(SentenceTransformer(str(exported), device="cpu"), model_prompts=prompts)
    found = mteb.evaluate(model, tasks_of(hub), cache=None, show_progress_bar=False, co2_tracker=False)
    return {result.task_name: result.get_score() for result in found.task_results}


@pytest.mark.parametrize("stored", [False, True])
def test_every_text_task_type_scores_as_sentence_transformers_does(hub, exported, tmp_path, stored):
    encoder = Encoder(str(exported), dtype="float32", allow_empty=True)
    model = MTEBEncoder("tiny", encoder, prompts=encoder.prompts if stored else None)
    ours = run_tasks(model, lambda: tasks_of(hub), tmp_path)
    assert [s.error for s in ours] == [None] * len(hub_folders.TASKS)
    assert [s.type for s in ours] == list(hub_folders.TASKS.values())
    assert len(TYPES) == 10
    prompts = None
    if not stored:
        prompts = {}
        for task in tasks_of(hub):
            name = task.metadata.name
            sided = task.metadata.type in ("Retrieval", "Reranking", "InstructionReranking")
            prompts[f"{name}-query" if sided else name] = model.prompt(task.metadata, "query" if sided else None)
            if sided:
                prompts[f"{name}-document"] = ""
    expected = scores_of_sentence_transformers(exported, hub, prompts)
    assert {s.task: s.score for s in ours} == pytest.approx(expected, abs=1e-4)
    assert len({round(score, 3) for score in expected.values()}) > 6  # scores of real tasks, not constants


def test_bright_scores_with_exclusions_as_a_float64_scorer_does(hub, tmp_path):
    bag = HashedBagOfWords(128)
    [score] = run_tasks(MTEBEncoder("m", bag), lambda: tasks_of(hub, ["BrightBiologyRetrieval"]), tmp_path)
    documents = bag.encode(hub_folders.DOCUMENTS).astype(np.float64)
    gains = []
    for i, query in enumerate(bag.encode(hub_folders.TOPICS).astype(np.float64)):
        excluded = {i} if i < 5 else set()
        order = [j for j in np.argsort(-(documents @ query), kind="stable") if j not in excluded]
        rank = order.index(6 + i) + 1
        gains.append(1 / np.log2(rank + 1) if rank <= 10 else 0.0)
    assert score.score == pytest.approx(np.mean(gains), abs=1e-5)
    [paper] = run_tasks(MTEBEncoder("m", bag), suite("bright_paper", data_folder=hub).tasks, tmp_path)
    assert paper.error is None
    assert len(paper.languages) == 12
    assert paper.score < score.score  # its data has no exclusions


def test_bright_has_a_prompt_per_domain_and_the_paper_one_for_all(hub):
    model = MTEBEncoder("m", HashedBagOfWords(16))
    [biology] = tasks_of(hub, ["BrightBiologyRetrieval"])
    [paper] = suite("bright_paper", data_folder=hub).tasks()
    assert "biology post" in model.prompt(biology.metadata, "query")
    assert "biology" not in model.prompt(paper.metadata, "query")


def test_the_share_of_cut_texts_is_reported_and_kept(hub, exported, tmp_path):
    lines = []

    class Log:
        line = staticmethod(lines.append)

    def run(length):
        encoder = Encoder(str(exported), dtype="float32", max_length=length, allow_empty=True)
        model = MTEBEncoder(f"cut-{length}", encoder, prompts={})
        names = ["SciFact", "BornholmBitextMining"]
        return [run_tasks(model, lambda: tasks_of(hub, names), tmp_path, log=Log) for _ in range(2)]

    for first, again in (run(120), run(12)):
        assert [s.truncated for s in first] == [s.truncated for s in again]  # read from the file the second time
    tokenizer = load(str(exported)).tokenizer
    texts = hub_folders.DOCUMENTS + hub_folders.TOPICS
    cut = sum(len(tokenizer(text)["input_ids"]) > 12 for text in texts)
    assert 0 < cut < len(texts)
    assert first[0].truncated == pytest.approx(cut / len(texts))
    assert "% of texts cut" in lines[-1]


def test_empty_texts_of_real_data_are_vectors_of_zeros_not_failures(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    configs = hub_folders.retrieval()
    configs["corpus"]["test"][12]["text"] = ""
    (tmp_path / "mteb").mkdir()
    write_data_set(tmp_path / "drafts", configs).rename(tmp_path / "mteb" / "scifact")
    names = ["SciFact"]
    scores = {}
    for allowed in (True, False):
        encoder = Encoder(str(exported), dtype="float32", allow_empty=allowed)
        model = MTEBEncoder(f"allowed-{allowed}", encoder)
        [scores[allowed]] = run_tasks(model, lambda: tasks_of(tmp_path, names), tmp_path / "results")
    assert scores[True].error is None
    assert "has no tokens" in scores[False].error
