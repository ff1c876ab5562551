"""Every config of a pair runs end to end on tiny folders in its own layout: its data files, its recipe, its stages."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import write_model

from experiments import convert, study
from hrsa_jax.report import schema

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["red", "green", "blue", "old", "new", "big", "cat", "dog", "fish", "bird", "house", "tree", "road", "city"]

FAMILIES = {
    "paper_qwen2p5": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "paper_qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
    "llama3p1_8b": {"tie_word_embeddings": False},
    "mistral_7b": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "tie_word_embeddings": False},
    "smollm2": {},
}


def load_config(name):
    sys.path.insert(0, str(ROOT))  # as launch.py's own folder is
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config().to_dict()


def write_data(folder, files):
    """Files in the layout of configs/paper.py: a few rows each, one smaller than a batch."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, file in enumerate(files):
        with (folder / file["path"]).open("w") as stream:
            for i in range(3 + number % 4 * 2):
                words = [WORDS[j] for j in random.integers(len(WORDS), size=4)]
                stem = Path(file["path"]).stem
                row = {"query": ["Find it", f"the {words[0]} {stem} {i}"], "pos": [f"{' '.join(words)} {stem} {i}"]}
                row["neg"] = [f"{words[k]} {stem} no {i}" for k in range(i % 3)]
                stream.write(json.dumps(row) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_runs_end_to_end_on_tiny_folders(name, tmp_path):
    config = load_config(name)
    assert config.pop("experiment") == "study"
    config["base"] = str(write_model(tmp_path / "base", **FAMILIES[name]))
    if config.get("reasoning"):
        config["reasoning"] = str(write_model(tmp_path / "reasoning", seed=1, **FAMILIES[name]))
    config["mesh"] = {"data": 2, "fsdp": 4, "tensor": 1}
    section = config["convert"]
    if section.get("files"):
        section["folder"] = str(tmp_path / "data")
        write_data(tmp_path / "data", section["files"])
    else:
        section |= {"pairs": 40, "sources": ("news_titles",)}
    lengths = {"max_query_length": 160, "max_passage_length": 96, "chunk_tokens": 4096, "dtype": "float32"}
    section["recipe"] |= {"batch_size": 8, **lengths}
    section |= {"seeds": (0,), "checkpoint_every": 3}
    if config.get("tune"):
        config["tune"] |= {"steps": 3, "problems": 24, "held_out": 6, "accuracy_questions": 4, "checkpoint_every": 2}
        config["tune"]["recipe"] |= {"rows": 1, "row_length": 512}
        config["tune"]["optim"] |= {"warmup_steps": 1}
    tasks = ("OfflineNewsRetrieval", "OfflineLeeSTS")
    config["benchmark"] = {"tasks": tasks, "max_length": 160, "dtype": "float32"}
    config["hrsa"] = {"texts": 9, "max_tokens": 12, "labelled_texts": 60, "labelled_max_tokens": 24}
    assert study.run(config, str(tmp_path / "run"), command="python launch.py") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    schema.validate(results)
    pairing = json.loads((tmp_path / "run" / "manifest.json").read_text())["pairing"]["seed 0"]
    assert pairing["equal"]
    data = results["training"]["base-Emb"]["data"]
    if section.get("files"):
        assert len(data["datasets"]) == 12
        assert data["mixed_batches"] > 0
        card = (tmp_path / "run" / "stages/convert/base-Emb-s0/model/README.md").read_text()
        assert "smallest cosine to the model's own query vectors" in card  # the published template ends in a space


@pytest.mark.slow
def test_the_offline_conversion_runs_on_a_tiny_folder(tmp_path):
    config = load_config("convert_smollm2")
    assert config.pop("experiment") == "convert"
    config["backbone"]["source"] = str(write_model(tmp_path / "model"))
    config["convert"]["recipe"] |= {"steps": 4, "max_query_length": 160}
    config["convert"]["optim"] |= {"warmup_steps": 1}
    config["convert"] |= {"seeds": (0,), "pairs": 60}
    config["convert"]["monitor"] |= {"every": 2, "max_length": 160, "dtype": "float32"}
    assert convert.run(config, str(tmp_path / "run"), command="python launch.py") == 0
    training = json.loads((tmp_path / "run" / "results.json").read_text())["training"]["base-Emb-s0"]
    assert [row["step"] for row in training["evaluation"]] == [2, 4]
