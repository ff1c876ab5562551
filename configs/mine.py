"""Hard negatives for JSON-lines training files, by the published rule: top 3 of the first min(100, 10%) ranks.

    python launch.py --config=configs/mine.py --workdir=runs/mine --config.folder=data

The encoder is any model that hrsa_jax loads (--config.encoder=...).

A negative scores at most 95% of its query's best positive (relative_margin 0.05). Every file is mined by itself, from
its own passages; the result is runs/mine/mined/<name>.jsonl with the scores of all passages, which the conversion's
distillation can use. Cost: a GPU-hour or so for a million passages with a 0.6B encoder. Every passage and query is
encoded once, and a file takes one product of the two; memory is that of a block, whatever the corpus.
Filter by margin (best positive minus best negative): --config.margin_at_least=0.05 keeps rows at or above it.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Settings of experiments/mine.py."""
    return config_dict.ConfigDict(
        {
            "experiment": "mine",
            "encoder": "Qwen/Qwen3-Embedding-0.6B",
            "folder": "data",
            "files": ({"path": "nq.jsonl"}, {"path": "squad.jsonl"}),
            "count": 3,
            "relative_margin": 0.05,
            "absolute_margin": 0.0,
            "first_rank": 0,
            "last_rank": config_dict.placeholder(int),
            "least_negatives": 0,
            "margin_at_least": config_dict.placeholder(float),
            "margin_at_most": config_dict.placeholder(float),
            "max_length": 512,
            "dtype": "bfloat16",
            "batch_tokens": 8192,
            "block": 4096,
        }
    )
