"""Every reader of files and settings that users or strangers write, with the documents that are thrown at it.

A reader takes a folder, in which its document lies, and may end in two ways: a value, or InputError.
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import documents as broken
import numpy as np
from absl import flags
from hypothesis import strategies as st
from ml_collections import config_flags
from tiny import CONFIG

import launch
from configs import quickstart
from experiments.compare import CompareConfig, read_texts
from experiments.study import StudyConfig
from hrsa_jax.data.sources import read_jsonl
from hrsa_jax.evaluation.tables import read_published
from hrsa_jax.hrsa.activation_files import load_states
from hrsa_jax.models import gguf
from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.lora import _read_config as read_adapter
from hrsa_jax.models.safetensors_files import INDEX, SINGLE, SafetensorsFolder, read_json
from hrsa_jax.models.sentence_transformers_files import read_embedding_settings
from hrsa_jax.reasoning.sources import read_problems
from hrsa_jax.report import page, schema
from hrsa_jax.runtime.config import build
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import RunLog
from hrsa_jax.runtime.workdir import Workdir

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Reader:
    """file: where its document is put. read: given that folder. documents: bytes of it (or a value, without file)."""

    file: str | None
    read: Callable[[Any], Any]
    documents: st.SearchStrategy[Any]


def read_model_config(folder: Path) -> Any:
    """config.json as every model load reads it, and back."""
    return ModelConfig.from_hf(read_json(folder / "config.json"), where=str(folder / "config.json")).to_hf()


def read_weights(folder: Path) -> Any:
    """Header and every tensor."""
    checkpoint = SafetensorsFolder(folder)
    return [checkpoint.read(name).shape for name in checkpoint.entries]


def read_gguf(folder: Path) -> Any:
    """Header, the config in it, and every tensor."""
    file = gguf.GGUFFile(folder / "model.gguf")
    file.pooling()
    config = ModelConfig.from_hf(gguf.config_fields(file), where="model.gguf")
    return config, [file.read(name).shape for name in file.entries]


def read_workdir(folder: Path) -> Any:
    """A used workdir: its manifest, a finished stage, a stage that was cut off."""
    with Workdir(folder, {"a": 1}) as workdir:
        for name in ("finished", "cut"):
            with workdir.stage(name, {"b": 2}) as stage:
                if not stage.done:
                    stage.complete({"c": 3})
        workdir.record("pairing", {})
    return workdir.manifest


def read_metrics(folder: Path) -> Any:
    """The log of a run that continues."""
    log = RunLog(folder, primary=True, stream=io.StringIO())
    rows = log.history("convert")
    log.rewind("convert", 1)
    log.close()
    return rows


def read_command(arguments: list[str]) -> Any:
    """The flags as launch.py reads them (it exits with status 2 where they are wrong), then the study's settings."""
    parser = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", None, "", flag_values=parser)
    flags.DEFINE_string("workdir", None, "", flag_values=parser)
    with mock.patch.object(flags, "FLAGS", parser), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            launch._parse_flags(["launch.py", f"--config={ROOT / 'configs' / 'quickstart.py'}", *arguments])
        except SystemExit as error:
            if error.code != 2 or not said.getvalue().startswith("error: ") or said.getvalue().count("\n") != 1:
                raise RuntimeError(f"exit status {error.code}: {said.getvalue()}") from error
            raise InputError("the command line is refused") from None
    values = launch._with_added(config.value.to_dict())
    values.pop("experiment", None)
    return build(StudyConfig, values)


def _commands() -> st.SearchStrategy[list[str]]:
    """Overrides of settings that exist and that do not, with odd values."""
    names = [
        "base",
        "seeds",
        "convert.steps",
        "convert.optimizer",
        "hrsa.texts",
        "benchmark.tasks",
        "reuse",
        "gone",
        "hrsa",
    ]
    name = st.one_of(st.sampled_from(names), st.text(max_size=8))
    odd = [str(value)[:3000] for value in broken.ODD] + [
        "(1, 2)",
        "(1,",
        "((((" * 200,
        "[1]*10**9",
        "1e400",
        "0x10",
        "None",
    ]
    value = st.one_of(st.sampled_from(odd), st.text(max_size=8))
    override = st.builds(lambda name, value, form: form.format(name, value), name, value, st.sampled_from(
        ["--config.{}={}", "--config.{}", "--{}={}", "-config.{}={}", "--noconfig.{}", "{}"]
    ))  # fmt: skip
    helps = ("--help", "--helpfull", "--helpshort", "-h", "--help=", "--helpxml")
    return st.lists(override.filter(lambda text: not text.startswith(helps)), max_size=3)


def _pairs() -> st.SearchStrategy[bytes]:
    row = {"id": 1, "query": ["find it", "a question"], "pos": ["an answer"], "neg": ["another", "a third"]}
    scored = {"query": "q", "pos": ["p"], "pos_ids": ["7"], "pos_scores": [0.5], "neg": ["n"], "neg_scores": [0.25]}
    return broken.json_lines(row, scored | {"neg_ids": [3]}, {"query": "bare", "pos": ["x", "y"]})


def _config() -> tuple[dict[str, Any], ...]:
    yarn = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "mscale": 1.0,
        "mscale_all_dim": 1,
    }
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    qwen = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1, "layer_types": None}
    return (
        CONFIG | {"rope_scaling": llama3, "attention_bias": False, "eos_token_id": [1, 2]},
        CONFIG | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "rope_parameters": yarn, **qwen},
        CONFIG | {"model_type": "mistral", "architectures": ["MistralModel"], "layer_types": ["sliding_attention"] * 2},
    )  # fmt: skip


def _header() -> dict[str, Any]:
    entry = {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]}
    small = {"dtype": "BF16", "shape": [8], "data_offsets": [128, 144]}
    return {"__metadata__": {"format": "pt"}, "a.weight": entry, "b.weight": small}


def _gguf() -> st.SearchStrategy[bytes]:
    number, real = (lambda n: struct.pack("<II", 4, n)), (lambda x: struct.pack("<If", 6, x))
    sizes = {"context_length": 64, "block_count": 2, "embedding_length": 32, "feed_forward_length": 64}
    sizes |= {"attention.head_count": 4, "attention.head_count_kv": 2, "rope.dimension_count": 8, "vocab_size": 96}
    good = {f"llama.{key}": number(value) for key, value in sizes.items()}
    good |= {"llama.attention.layer_norm_rms_epsilon": real(1e-5), "llama.rope.freq_base": real(1e4)}
    good |= {
        "general.architecture": struct.pack("<I", 8) + broken.gguf_string("llama"),
        "general.alignment": number(32),
    }
    good |= {
        "llama.rope.scaling.type": struct.pack("<I", 8) + broken.gguf_string("none"),
        "llama.pooling_type": number(1),
    }
    good |= {"tokenizer.ggml.eos_token_id": number(1), "llama.attention.key_length": number(8)}
    table = [("token_embd.weight", (32, 2), 8, 0), ("rope_freqs.weight", (4,), 0, 96), ("b", (32,), 2, 128)]
    tensors = b"".join(
        broken.gguf_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        for name, shape, kind, offset in table
    )
    data = bytes(96) + np.ones(4, np.float32).tobytes() + bytes(64)
    return broken.gguf(good, tensors, len(table), data)


def _array(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _results() -> list[Any]:
    found = [json.loads((ROOT / "results" / name / "results.json").read_text()) for name in ("tune_sft",)]
    curve = {"layers": [0, 1], "value": [0.5, None], "interval95": [[0.1, 0.9], None]}
    pair = {"cka": curve, "cka_matrix": {"layers_a": [0], "layers_b": [0, 1], "value": [[0.5, 1]]}, "notes": []}
    study = {
        "schema": 1, "config": {}, "models": {"base": {"layers": 2}}, "hrsa": {"a_vs_b": pair}, "warnings": [],
        "benchmark": [{"model": "base", "task": "x", "score": 0.5, "interval95": [0.4, 0.6]}],
        "null_effect": {"estimate": 0.1, "margin": 1.0, "interval90": [-1, 1]}, "realignment": {"cka": curve},
        "reasoning": {"before": {"accuracy": 0.5, "n": 4}, "loss_change": {"relative": -0.5, "interval95": [-1, -0.4]}},
        "training": {"base-Emb": {"step": [0, 1], "loss": [2.0, 1.0]}},
    }  # fmt: skip
    return [study, *({key: value for key, value in one.items() if key != "config"} for one in found)]


def _tables() -> tuple[bytes, bytes]:
    return b"model,A,B\nbase,0.5,0.25\nother,50,\n", b'model,task,score\nbase,"A, b",0.5\nbase,B,1\n'


def _used() -> tuple[dict[str, Any], dict[str, Any]]:
    """A manifest and a marker as Workdir writes them."""
    stage = {"inputs": {"b": 2}, "fingerprint": "0123456789abcdef", "seconds": 0.5, "peak_mb": 100.0}
    manifest = {"config": {"a": 1}, "started": "2026-01-01T00:00:00Z", "stages": {"finished": stage}, "versions": {}}
    return manifest, {"fingerprint": "1d9ed7e9c3fd2c85", "result": {"c": 3}, "seconds": 0.5, "peak_mb": 100.0}


def readers() -> dict[str, Reader]:
    """Name -> reader."""
    texts = b"one text\nanother text\n\na third\n"
    labelled = CompareConfig(a="", b="", texts="texts.jsonl", label_field="topic")
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    st_extra = {"prompts": {"query": "Instruct: "}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    pooling = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "include_prompt": False}
    adapter = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "use_rslora": True}
    manifest, marker = _used()
    states = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    arrays = (_array(states), _array(states[0].astype(np.float16)), _array(states.astype(np.int64)[:, :, ::2]))
    index = {"metadata": {"total_size": 10}, "weight_map": {"a.weight": "model-1.safetensors"}}
    activations = {"states": {"dtype": "F32", "shape": [2, 2, 4], "data_offsets": [0, 64]}}
    activations["groups"] = {"dtype": "I32", "shape": [2], "data_offsets": [64, 72]}
    settings = quickstart.get_config().to_dict()
    del settings["experiment"]
    metrics = [{"stage": "convert", "step": i, "loss": 1.0 / (1 + i)} for i in range(3)]
    return {
        "training pairs (JSONL)": Reader("p.jsonl", lambda f: read_jsonl(f / "p.jsonl"), _pairs()),
        "problems (JSONL)": Reader(
            "p.jsonl",
            lambda f: read_problems(f / "p.jsonl"),
            broken.json_lines(
                {"question": "1+1?", "solution": "2 #### 2", "answer": 2}, {"question": "2?", "solution": "#### 2"}
            ),
        ),
        "texts of compare (JSONL)": Reader(
            "texts.jsonl",
            lambda f: read_texts(_at(labelled, f / "texts.jsonl")),
            broken.json_lines({"text": "one", "topic": "a"}, {"text": "two", "topic": 2}),
        ),
        "texts of compare (plain)": Reader(
            "t.txt", lambda f: read_texts(CompareConfig(a="", b="", texts=str(f / "t.txt"))), broken.plain(texts)
        ),
        "config.json": Reader("config.json", read_model_config, broken.json_documents(*_config())),
        "safetensors header": Reader(SINGLE, read_weights, broken.safetensors(_header(), data=144)),
        "safetensors index": Reader(INDEX, read_weights, broken.json_documents(index)),
        "GGUF header": Reader("model.gguf", read_gguf, _gguf()),
        "results.json": Reader("results.json", schema.read, broken.json_documents(*_results())),
        "published scores (JSON)": Reader(
            "s.json",
            lambda f: read_published(f / "s.json"),
            broken.json_documents({"base": {"A": 0.5, "B": 50}, "b": {}}),
        ),
        "published scores (CSV)": Reader("s.csv", lambda f: read_published(f / "s.csv"), broken.plain(*_tables())),
        "activations (.npy)": Reader(
            "a.npy", lambda f: load_states(f / "a.npy"), st.one_of(broken.binary(*arrays), broken.plain(*arrays))
        ),
        "activations (safetensors)": Reader(
            "a.safetensors", lambda f: load_states(f / "a.safetensors"), broken.safetensors(activations, data=72)
        ),
        "modules.json": Reader("modules.json", read_embedding_settings, broken.json_documents(modules)),
        "pooling config": Reader("1_Pooling/config.json", read_embedding_settings, broken.json_documents(pooling)),
        "sentence-transformers config": Reader(
            "config_sentence_transformers.json", read_embedding_settings, broken.json_documents(st_extra)
        ),
        "adapter_config.json": Reader(
            "adapter_config.json", lambda f: read_adapter(f / "adapter_config.json"), broken.json_documents(adapter)
        ),
        "manifest.json": Reader("manifest.json", read_workdir, broken.json_documents(manifest)),
        "stage marker": Reader("stages/finished/done.json", read_workdir, broken.json_documents(marker)),
        "metrics.jsonl": Reader("metrics.jsonl", read_metrics, broken.json_lines(*metrics)),
        "report page": Reader(
            "results.json",
            lambda f: page.write(f / "results.json", f / "report.html"),
            broken.json_documents(*_results()),
        ),
        "command line": Reader(None, read_command, _commands()),
        "settings": Reader(None, lambda values: build(StudyConfig, values), broken.values(settings)),
    }  # fmt: skip


def _at(config: CompareConfig, path: Path) -> CompareConfig:
    return CompareConfig(**{**vars(config), "texts": str(path)})
