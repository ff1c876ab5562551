"""The conversion as an experiment of its own: scores, snapshots, early stop, files, controls, A/A pairs."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from tiny import write_model

from experiments import convert
from experiments.conversion_report import gains, terminal_table
from experiments.run import Run
from hrsa_jax.embedding.encoder import Encoder
from hrsa_jax.runtime.config import build
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import RunLog
from hrsa_jax.runtime.workdir import Workdir

WORDS = ["red", "green", "blue", "old", "new", "big", "cat", "dog", "fish", "bird", "house", "tree", "road", "city"]


def write_pairs(path, count, *, seed):
    random = np.random.default_rng(seed)
    with path.open("w") as file:
        for i in range(count):
            words = [f"{WORDS[j]}" for j in random.integers(len(WORDS), size=6)]
            row = {"query": ["Find it", f"{path.stem} {i} {words[0]}"], "pos": [" ".join(words) + f" {path.stem}{i}"]}
            file.write(json.dumps(row | {"neg": [" ".join(words[::-1]) + f" n{i}"]}) + "\n")


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("convert")
    write_model(folder / "model")
    for name, count in (("news", 22), ("code", 13)):
        write_pairs(folder / f"{name}.jsonl", count, seed=count)
    return folder


def config(setting, **convert_settings):
    recipe = {"steps": 6, "batch_size": 4, "hard_negatives": 1, "dtype": "float32", "row_length": 64}
    return {
        "backbone": {"source": str(setting / "model")},
        "mesh": {"data": 4, "fsdp": 2},
        "convert": {
            "recipe": recipe | convert_settings.pop("recipe", {}),
            "optim": {"learning_rate": 3e-3},
            "lora": {"rank": 2, "alpha": 4.0},
            "folder": str(setting),
            "files": ({"path": "news.jsonl"}, {"path": "code.jsonl"}),
            "checkpoint_every": 2,
            **convert_settings,
        },
    }


def run(settings, path):
    assert convert.run(settings, str(path), command="python launch.py") == 0
    return json.loads((path / "results.json").read_text())


@pytest.fixture(scope="module")
def monitored(setting):
    """Scored while it trains, snapshots, every weight trained, on a mesh of eight devices."""
    monitor = {"every": 3, "tasks": ("OfflineNewsRetrieval",), "max_length": 160, "dtype": "float32", "keep": "best"}
    settings = config(setting, seeds=(5,), monitor=monitor, snapshots=(2,), lora=None)
    return setting / "monitored", run(settings, setting / "monitored")


def test_scores_curves_snapshots_and_data_are_kept(monitored):
    path, results = monitored
    assert set(results["training"]) == {"base-Emb-s5"}
    assert set(results["untrained"]["base"]) == {"causal", "bidirectional"}
    for key, training in results["training"].items():
        assert [row["step"] for row in training["evaluation"]] == [3, 6]
        assert training["best_step"] in (3, 6)
        assert training["steps"] == list(range(6))
        folder = path / "stages" / "convert" / key
        saved = json.loads((folder / "data.json").read_text())
        assert saved["datasets"] == {"news": 22, "code": 13}
        assert saved["overlap"]["compared"] > 0
        final = Encoder(str(folder / "model")).encode(["red cat"])
        early = Encoder(str(folder / "snapshots" / "step2")).encode(["red cat"])
        assert not np.allclose(final, early)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["stage"] == "convert/base-Emb-s5"]
    for name in (
        "loss",
        "grad_norm",
        "gap",
        "alignment",
        "uniformity",
        "tokens_per_second",
        "mfu",
        "padding",
        "purity",
    ):
        assert all(np.isfinite(row[name]) for row in trained), name
    assert trained[-1]["learning_rate"] < trained[0]["learning_rate"] == pytest.approx(3e-3)
    assert list((path / "tensorboard").glob("convert-base-Emb-s5/events*"))
    assert "<svg" in (path / "report.html").read_text()


@pytest.mark.slow
def test_an_a_a_pair_gives_the_same_weights_to_the_bit(setting):
    results = run(config(setting) | {"pair": {"source": str(setting / "model")}}, setting / "aa")
    models = results["models"]
    assert models["base-Emb-s0"]["fingerprint"] == models["reasoning-Emb-s0"]["fingerprint"]
    pairing = json.loads((setting / "aa" / "manifest.json").read_text())["pairing"]["seed 0"]
    assert pairing["equal"]
    assert pairing["base-Emb"] == pairing["reasoning-Emb"]


@pytest.mark.slow
def test_random_weights_are_a_control_of_the_same_shape(setting):
    settings = config(setting)
    settings["backbone"] |= {"reset": True, "seed": 3}
    results = run(settings, setting / "reset")
    fingerprints = {
        results["models"]["base-Emb-s0"]["fingerprint"],
        Encoder(str(setting / "model")).backbone.fingerprint,
    }
    assert len(fingerprints) == 2
    assert (setting / "reset" / "stages" / "reset" / "base" / "model" / "config.json").exists()


def test_evaluated_texts_are_refused_unless_allowed(setting):
    from hrsa_jax.evaluation.offline_tasks import task_texts
    from hrsa_jax.evaluation.suites import suite

    tasks = suite("offline", folder=setting / "tasks", names=("OfflineNewsRetrieval",)).tasks()
    text = next(iter(task_texts(tasks).values()))[0]
    row = {"query": "planted", "pos": [text]}
    (setting / "leak.jsonl").write_text((json.dumps(row) + "\n") + (setting / "news.jsonl").read_text())
    monitor = {"every": 6, "tasks": ("OfflineNewsRetrieval",), "max_length": 160, "dtype": "float32"}
    settings = config(setting, monitor=monitor, files=({"path": "leak.jsonl"},))
    with pytest.raises(InputError, match="1 training texts are also test texts"):
        run(settings, setting / "leaky")
    settings["convert"]["allow_overlap"] = True
    allowed = build(convert.ConvertRun, settings).convert
    with Workdir(setting / "allowed", {}) as workdir:
        data = convert.training_data(allowed, Run(workdir, RunLog(None)))
    assert data.facts["overlap"]["found"] == 1
    assert data.facts["overlap"]["examples"][0]["dataset"] == "leak"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": ({"path": "news.jsonl"}, {"path": "news.jsonl"})}, "two training files are called 'news'"),
        ({"files": ({"path": "news.jsonl", "hub": "x"},)}, "give one of the two"),
        ({"snapshots": (9,)}, "snapshots holds 9"),
        ({"seeds": (1, 1)}, "give at least one seed, each once"),
        ({"recipe": {"epochs": 1.0}}, "steps=6 and epochs=1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        run(config(setting, **change), tmp_path / "refused")


@pytest.fixture(autouse=True)
def _no_hub():
    assert os.environ.get("HF_HUB_OFFLINE") == "1"


def test_the_terminal_says_what_conversion_gained():
    path = Path(__file__).resolve().parents[2] / "results" / "convert_smollm2" / "results.json"
    results = json.loads(path.read_text())
    lines = terminal_table(results).splitlines()
    assert max(map(len, lines)) <= 80
    gain = gains(results)["base-Emb-s0"]
    assert lines[2].split() == ["base-Emb-s0", *(f"{100 * gain[name]:.1f}" for name in ("untrained", "last")),
                                f"{100 * gain['rise']:+.1f}", f"{100 * gain['best']:.1f}"]  # fmt: skip
    for run in results["training"].values():
        run["evaluation"] = []
    assert terminal_table(results).startswith("The models were not scored")
