"""experiments/evaluate.py as an experiment of its own: any source, shared work, published scores, exit statuses."""

import json

import pytest
from tiny import write_model

from experiments import evaluate
from hrsa_jax.embedding.export import export_sentence_transformers
from hrsa_jax.evaluation import mteb_encoder, runner
from hrsa_jax.evaluation.baselines import RandomVectors
from hrsa_jax.models.backbone import load
from hrsa_jax.runtime import processes
from hrsa_jax.runtime.errors import InputError

TASKS = ("OfflineNewsRetrieval", "OfflineNewsClassification")
NAMES = [f"{task}Small.v1" for task in TASKS]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A backbone folder and the same one as a sentence-transformers folder."""
    folder = tmp_path_factory.mktemp("models")
    backbone = write_model(folder / "backbone")
    exported = export_sentence_transformers(
        load(backbone),
        folder / "exported",
        pooling="mean",
        normalize=True,
        prompts={"query": "Find: \n"},
        max_length=64,
        attention="bidirectional",
        card="test",
    )
    return backbone, exported


def config(sources, **changes):
    return {"models": tuple(map(str, sources)), "tasks": TASKS, "dtype": "float32", "max_length": 160, **changes}


def run(setting, path):
    return evaluate.run(setting, str(path), command="test")


def test_folders_are_scored_beside_published_scores(models, tiny, tmp_path, capsys):
    published = tmp_path / "published.csv"
    published.write_text(f"model,{NAMES[0]}\norg/known,61.5\n")
    assert run(config(models, published=str(published)), tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert "org/known *" in printed
    assert "61.50" in printed
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    rows = results["suites"]["offline"]["models"]
    assert list(rows) == ["backbone", "exported", "bag-of-words", "random"]
    assert results["models"]["backbone"]["attention"] == "causal"
    assert results["models"]["exported"]["attention"] == "bidirectional"
    assert rows["bag-of-words"]["means"]["by_task"] > rows["random"]["means"]["by_task"]
    assert set(rows["exported"]["languages"]) == {"eng"}
    assert 0 < rows["exported"]["scores"][0]["truncated"] <= 1
    facts = results["models"]["exported"]
    layout = tmp_path / "run" / "results" / "results" / facts["mteb_name"].replace("/", "__") / facts["revision"]
    assert {path.name for path in layout.glob("*.json")} == {*(f"{name}.json" for name in NAMES), "model_meta.json"}


def test_workers_in_folders_of_their_own_share_the_results(models, tiny, tmp_path, capsys):
    shared = config(models[:1], baselines=False, results=str(tmp_path / "shared"), workers=2)
    assert run({**shared, "worker": 1}, tmp_path / "one") == 0
    assert f"not finished yet: {NAMES[0]}" in " ".join(capsys.readouterr().err.split())
    half = json.loads((tmp_path / "one" / "results.json").read_text())["suites"]["offline"]["models"]["backbone"]
    assert half["means"] is None
    assert NAMES[0] in half["missing"]
    assert run({**shared, "worker": 0}, tmp_path / "zero") == 0
    whole = json.loads((tmp_path / "zero" / "results.json").read_text())["suites"]["offline"]["models"]["backbone"]
    assert len(whole["means"]["types"]) == 2


def test_a_failed_task_is_listed_the_rest_done_and_the_status_is_3(models, tiny, tmp_path, capsys, monkeypatch):
    encode = mteb_encoder.MTEBEncoder.encode

    def failing(self, inputs, *, task_metadata, **options):
        if task_metadata.type == "Classification":
            raise RuntimeError("planted")
        return encode(self, inputs, task_metadata=task_metadata, **options)

    setting = config(models[:1], baselines=False)
    with monkeypatch.context() as patch:
        patch.setattr(mteb_encoder.MTEBEncoder, "encode", failing)
        assert run(setting, tmp_path / "run") == 3
    printed = " ".join(capsys.readouterr().err.split())
    assert f"FAILED: {NAMES[1]} failed for backbone: RuntimeError: planted" in printed
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["suites"]["offline"]["models"]["backbone"]
    assert [score["score"] is None for score in rows["scores"]] == [False, True]
    assert NAMES[1] in rows["missing"]
    assert run(setting, tmp_path / "run") == 0  # the same command does what was missing


def test_stored_prompts_are_another_revision(models, tiny, tmp_path):
    revisions = []
    for prompts in ("instructions", "stored"):
        setting = config(models[1:], baselines=False, prompts=prompts, tasks=TASKS[:1])
        assert run(setting, tmp_path / prompts) == 0
        results = json.loads((tmp_path / prompts / "results.json").read_text())
        revisions.append(results["models"]["exported"]["revision"])
    assert revisions[0] != revisions[1]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"models": ()}, "at least|one model"),
        ({"models": ("a/x", "b/x")}, "name of its own"),
        ({"suites": ("offline", "qa")}, "only one together with config.tasks"),
        ({"suites": ("offlin",), "tasks": None}, "did you mean 'offline'"),
        ({"suites": ("SciFact",), "tasks": None}, "HF_HUB_OFFLINE=1"),
        ({"tasks": ("OfflineChess",)}, "OfflineChess"),
        ({"worker": 2, "workers": 2}, "config.worker=2"),
        ({"published": "nowhere.csv"}, "cannot be read"),
        ({"models": ("nowhere/at/all",)}, "nowhere/at/all"),
    ],
)
def test_bad_input_gives_one_sentence(models, tiny, tmp_path, changes, why, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=why) as caught:
        run(config(models, baselines=False, **changes), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "results.json").exists()


def test_names_of_models():
    setting = evaluate.EvaluateConfig(("package:llm_x", "org/model@main", "a/b/file.gguf", "mine=path/to/it/"))
    assert setting.named_models() == [
        ("llm_x", "package:llm_x"),
        ("model", "org/model@main"),
        ("file", "a/b/file.gguf"),
        ("mine", "path/to/it/"),
    ]


def test_several_processes_are_refused_before_anything_is_read_or_written(tmp_path, monkeypatch):
    monkeypatch.setitem(processes._here, "count", 2)
    with pytest.raises(InputError, match="benchmarks run in one process, and this run has 2: give the same command"):
        run(config(["nowhere/at-all"]), tmp_path / "run")
    with pytest.raises(InputError, match="benchmarks run in one process"):  # of a study, of a conversion's monitor
        runner.run_tasks(mteb_encoder.MTEBEncoder("random", RandomVectors()), lambda: [], tmp_path / "run")
    assert not (tmp_path / "run").exists()
