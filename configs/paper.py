"""What the published conversion fixes (arXiv 2601.21192); shared by the paper_*, llama3p1_8b and mistral_7b configs.

Not a config of its own. Data: a folder of JSON-lines files, {"query": [instruction, text], "pos": [..], "neg": [..]},
one a data set, named as in FILES; hard negatives are mined beforehand (configs/mine.py). A file that is not there is
refused by name.
"""

from typing import Any

from ml_collections import config_dict

FILES = (
    *("allnli", "dureader", "fever", "hotpotqa", "mrtydi", "msmarco", "nq", "quora", "squad", "t2ranking", "triviaqa"),
    "codesearchnet",
)


def convert() -> dict[str, Any]:
    """One-way InfoNCE on cosine / 0.02 over a global batch of 2,048 with three hard negatives each, one epoch."""
    return {
        "seeds": (0, 1, 2),
        "folder": "data",
        "files": tuple({"path": f"{name}.jsonl"} for name in FILES),
        "allow_overlap": False,
        "checkpoint_every": 50,
        "snapshots": (),
        "recipe": {
            "epochs": 1.0,
            "batch_size": 2048,
            "hard_negatives": 3,
            "temperature": 0.02,
            "pooling": "mean",
            "attention": "bidirectional",
            "template": "Instruct: {instruction}\nQuery: ",
            "max_query_length": 512,
            "max_passage_length": 512,
            "chunk_tokens": 65536,
            "dtype": "bfloat16",
            "remat": True,
            "leftovers": "mix",
            "mask_false_negatives": False,
        },
        "optim": {
            "learning_rate": 2e-5,
            "warmup_share": 0.03,
            "schedule": "cosine",
            "weight_decay": 0.05,
            "clip_norm": 1.0,
        },
        "lora": None,
    }


def study(base: str, *, label: str, **settings: Any) -> config_dict.ConfigDict:
    """A study of one pair at the paper's scale; `settings` holds `reasoning`, or `tune`."""
    return config_dict.ConfigDict(
        {
            "experiment": "study",
            "label": label,
            "checkpoints": "",  # gs://bucket/path: those of training go there
            "base": base,
            "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
            "convert": convert(),
            "benchmark": {"suite": "MTEB(eng, v2)", "margin": 1.0, "max_length": 512, "batch_tokens": 65536},
            "hrsa": {"texts": 256, "max_tokens": 128, "labelled_texts": 400},
            **settings,
        }
    )
