"""What a conversion and its study take on given hardware; no weights are read and nothing is written.

    python launch.py --config=configs/plan.py --config.hardware=H100 --config.devices=8
    python launch.py --config=configs/plan.py --config.hardware=v5e --config.devices=64

model: a name of configs/architectures.py (add yours there), a model source, or a folder that holds a config.json and
nothing else. mesh: all 0 asks for a recommendation. recipe.chunks 1 without
chunk_tokens asks for the largest chunk that fits `memory_share` of a device's memory. lora: None trains every weight.
texts: mean tokens, a query's with its instruction; `padding` is the share of slots without a token. mfu: of training.
Cost: about a minute on two cores, most of it compiling the step on simulated devices.
"""

from ml_collections import config_dict

from configs.architectures import ARCHITECTURES


def get_config() -> config_dict.ConfigDict:
    """Settings of experiments/plan.py."""
    return config_dict.ConfigDict(
        {
            "experiment": "plan",
            "model": "Qwen2.5-1.5B",
            "architectures": ARCHITECTURES,
            "hardware": "H100",
            "devices": 8,
            "mesh": {"data": 0, "fsdp": 0, "tensor": 0},
            "memory_share": 0.9,
            "mfu": 0.4,
            "encode_mfu": 0.4,
            "texts": {"query": 40, "passage": 130, "padding": 0.05, "row_length": 512},
            "recipe": {
                "epochs": 1.0,
                "batch_size": 2048,
                "hard_negatives": 3,
                "max_query_length": 512,
                "max_passage_length": 512,
                "chunks": 1,
                "chunk_tokens": config_dict.placeholder(int),
                "dtype": "bfloat16",
                "remat": True,
            },
            "optim": {"learning_rate": 2e-5, "weight_decay": 0.05, "clip_norm": 1.0},
            "lora": None,
            "study": {"pairs": 1660000, "seeds": 3, "evaluation_tokens": 2e9, "hrsa_tokens": 125000},
        }
    )
