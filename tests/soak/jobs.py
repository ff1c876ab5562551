"""The jobs that the campaign kills: every kind of run on a model of a few kilobytes, and a loop that only saves."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PLACES = [str(ROOT), str(ROOT / "tests" / "experiments"), str(ROOT / "tests" / "soak")]
sys.path += PLACES

CONFIG = """from ml_collections import config_dict

def get_config():
    return config_dict.ConfigDict({config!r})
"""
WORDS = ["red", "green", "blue", "old", "new", "big", "cat", "dog", "fish", "bird", "house", "tree", "road", "city"]
SAVING_STEPS = 100
# What a clock gives: no two runs share it, killed or not.
CLOCKED = ("timings", "seconds", "tokens_per_second", "mfu", "peak_mb")


@dataclass(frozen=True)
class Job:
    """kills: SIGKILLs planned for one workdir. program: what a fresh process runs, given the workdir."""

    name: str
    kills: int
    program: Callable[[Path], None]


def jobs(folder: Path) -> dict[str, Job]:
    """Every kind of job; the models, texts and config files are written to `folder`."""
    from tiny import write_model

    for name, seed in (("model", 0), ("other", 1)):
        if not (folder / name / "config.json").exists():
            write_model(folder / name, seed=seed)
    _write_pairs(folder / "pairs.jsonl", 40)
    kills = {"study": 10, "convert": 6, "tune_sft": 6, "tune_grpo": 6, "evaluate": 6, "compare": 6}
    made = {"saving": Job("saving", 30, _save)}
    for name, config in _configs(folder).items():
        path = folder / f"{name}.py"
        path.write_text(CONFIG.format(config=config))
        made[name] = Job(name, kills[name], _Launch(str(path)))
    return made


@dataclass(frozen=True)
class _Launch:
    """`python launch.py --config=... --workdir=...` in this process."""

    config: str

    def __call__(self, workdir: Path) -> None:
        from absl import app

        import launch

        sys.argv = ["launch.py", f"--config={self.config}", f"--workdir={workdir}"]
        app.run(launch.main, flags_parser=launch._parse_flags)


def _save(workdir: Path) -> None:
    from saving import train_to_end

    train_to_end(str(workdir), SAVING_STEPS)


def facts(workdir: Path) -> dict[str, str]:
    """What a finished run left that must not depend on kills: results without clocks, losses, weights."""
    found = {}
    if (workdir / "results.json").exists():
        found["results.json"] = json.dumps(_unclocked(json.loads((workdir / "results.json").read_text())))
    if (workdir / "metrics.jsonl").exists():
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        found["metrics.jsonl"] = json.dumps(sorted((r["stage"], r["step"], r.get("loss")) for r in rows))
    for path in sorted([*workdir.rglob("*.safetensors"), *workdir.glob("final.npz")]):
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                content = b"".join(name.encode() + arrays[name].tobytes() for name in sorted(arrays.files))
        else:
            content = path.read_bytes()
        found[str(path.relative_to(workdir))] = hashlib.sha256(content).hexdigest()
    return found


def _unclocked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unclocked(item) for key, item in sorted(value.items()) if not key.startswith(CLOCKED)}
    return [_unclocked(item) for item in value] if isinstance(value, list) else value


def _write_pairs(path: Path, count: int) -> None:
    random = np.random.default_rng(count)
    rows = []
    for i in range(count):
        words = [WORDS[j] for j in random.integers(len(WORDS), size=6)]
        row = {"query": f"{i} {words[0]}", "pos": [f"{' '.join(words)} {i}"], "neg": [f"{' '.join(words[::-1])} n{i}"]}
        rows.append(json.dumps(row | {"text": " ".join(words), "topic": ("a", "b")[i % 2]}))
    path.write_text("\n".join(rows) + "\n")


def _configs(folder: Path) -> dict[str, dict[str, Any]]:
    base, other, rows = (str(folder / name) for name in ("model", "other", "pairs.jsonl"))
    shared = {"optim": {"learning_rate": 1e-3, "warmup_steps": 1}, "lora": {"rank": 2, "alpha": 4.0}}
    tune = shared | {
        "family": "chain_sum", "problems": 40, "held_out": 6, "accuracy_questions": 5, "checkpoint_every": 1,
        "accuracy_style": "raw",
    }  # fmt: skip
    grpo = {"questions": 2, "group": 4, "max_new_tokens": 4, "style": "raw", "dtype": "float32"}
    convert = shared | {"checkpoint_every": 1}
    recipe = {"batch_size": 4, "row_length": 64, "dtype": "float32"}
    longer = recipe | {"steps": 4, "max_query_length": 160, "max_passage_length": 96, "row_length": 192}
    benchmark = {"tasks": ("OfflineNewsRetrieval", "OfflineLeeSTS"), "max_length": 160, "dtype": "float32"}
    sft = {"rows": 1, "row_length": 512, "dtype": "float32"}
    return {
        "convert": {
            "experiment": "convert",
            "backbone": {"source": base},
            "convert": convert | {"files": ({"path": rows},), "recipe": recipe | {"steps": 24, "hard_negatives": 1}},
        },
        "tune_sft": {"experiment": "tune", "base": base, "tune": tune | {"steps": 12, "recipe": sft}},
        "tune_grpo": {"experiment": "tune", "method": "grpo", "base": base, "tune": tune | {"steps": 5, "grpo": grpo}},
        "evaluate": {"experiment": "evaluate", "models": (base, other), **benchmark},
        "compare": {"experiment": "compare", "a": base, "b": other, "texts": rows, "label_field": "topic",
                    "max_texts": 40, "max_tokens": 12, "noise_floor": True},
        "study": {
            "experiment": "study", "label": "tiny", "base": base, "demonstration": True,
            "tune": tune | {"steps": 4, "problems": 24, "accuracy_questions": 4, "recipe": sft},
            "convert": convert | {"seeds": (0,), "pairs": 60,
                                  "sources": ("news_titles", "reasoning"), "recipe": longer},
            "benchmark": benchmark,
            "hrsa": {"texts": 12, "max_tokens": 24, "labelled_texts": 60, "labelled_max_tokens": 48},
        },
    }  # fmt: skip
