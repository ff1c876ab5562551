"""The paper's question on SmolLM2-135M-Instruct, three variants, three seeds, every control: docs/replication.md.

    python launch.py --config=configs/replication.py:sft --workdir=runs/replication/sft
    python launch.py --config=configs/replication.py:rlvr --workdir=runs/replication/rlvr
    python launch.py --config=configs/replication.py:sft_full --workdir=runs/replication/sft_full

sft: LoRA on worked solutions (configs/tune_sft.py); rlvr: LoRA by GRPO (configs/tune_grpo.py); sft_full: every weight
on worked solutions (configs/tune_sft_full.py). `make replication` runs all three and the page over them. What has been
run already is taken from it: --config.reuse="('runs/replication/sft',)" takes the conversions of the base and its
controls from another study, "runs/tune_sft" the variant from a run of its own config. No hub, no accelerator. Cost:
35 minutes on two CPU cores for the first study and 15 for each of the others, beside 26, 20 and 10 CPU-minutes for the
variants.
"""

from ml_collections import config_dict

from configs import tune_grpo, tune_sft, tune_sft_full

VARIANTS = {"sft": tune_sft, "rlvr": tune_grpo, "sft_full": tune_sft_full}


def get_config(variant: str = "sft") -> config_dict.ConfigDict:
    """Settings of experiments/study.py."""
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}: it is one of {', '.join(VARIANTS)}")
    made = VARIANTS[variant].get_config().to_dict()
    return config_dict.ConfigDict(
        {
            "experiment": "study",
            "label": f"Replication at small scale: {made['label']}; three seeds, short LoRA conversions, small tasks.",
            "base": made["base"],
            "tune": {**made["tune"], "method": made["method"]},
            "convert": {
                "seeds": (0, 1, 2),
                "pairs": 1000,
                "sources": ("package_functions", "news_titles"),
                "checkpoint_every": 8,
                "snapshots": (6, 12),
                "recipe": {
                    "steps": 24,
                    "batch_size": 8,
                    "hard_negatives": 1,
                    "max_query_length": 64,
                    "max_passage_length": 48,
                },
                "optim": {"learning_rate": 3e-4, "warmup_steps": 5, "weight_decay": 0.0},
                "lora": {"rank": 16, "alpha": 32.0},
            },
            "controls": {"undertrained_steps": 1, "random_weights": True, "noise_floor": True, "planted": True},
            "benchmark": {
                "size": "small",
                "tasks": (
                    "OfflineCodeRetrieval",
                    "OfflineReasoningRetrieval",
                    "OfflineNewsRetrieval",
                    "OfflineNewsClassification",
                    "OfflineNewsClustering",
                    "OfflineNewsPairClassification",
                    "OfflineLeeSTS",
                    "OfflineDjangoBitextMining",
                ),
                "margin": 1.0,
                "max_length": 48,
                "dtype": "bfloat16",
            },
            "hrsa": {
                "texts": 48,
                "max_tokens": 40,
                "labelled_texts": 400,
                "labelled_max_tokens": 16,
                "preset": "careful",
            },
            "reuse": (),
        }
    )
