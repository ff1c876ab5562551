"""SFT on SmolLM2-135M-Instruct as configs/tune_sft.py does it, but every weight is trained.

    python launch.py --config=configs/tune_sft_full.py --workdir=runs/tune_sft_full

The third variant of docs/replication.md: same problems, fewer steps, no adapters. No hub, no accelerator. Cost: about
10 CPU-minutes on two cores, 6 GB of memory.
"""

from ml_collections import config_dict

from configs import tune_sft


def get_config() -> config_dict.ConfigDict:
    """Settings of experiments/tune.py."""
    settings = tune_sft.get_config().to_dict()
    settings["label"] = "SmolLM2-135M-Instruct, every weight, SFT on worked solutions and short sums"
    settings["tune"] |= {"steps": 60, "lora": None}
    settings["tune"]["optim"]["learning_rate"] = 3e-5
    return config_dict.ConfigDict(settings)
