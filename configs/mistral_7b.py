"""Mistral-7B against a variant tuned here on worked solutions, both converted by the published recipe.

    python launch.py --config=configs/mistral_7b.py --workdir=runs/mistral_7b --config.convert.folder=data

Needs the hub (model and MTEB) and the training files of configs/paper.py. Cost: estimated, not measured,
minutes for the variant and 4e19 model FLOPs for each of six conversions. 116 GB of weights and optimiser state are
split over the devices (mesh.fsdp takes them all), so four of 80 GB at the least.
"""

from ml_collections import config_dict

from configs.paper import study


def get_config() -> config_dict.ConfigDict:
    """Settings of experiments/study.py."""
    tune = {
        "steps": 500,
        "family": "gsm_symbolic",
        "problems": 8000,
        "held_out": 200,
        "accuracy_family": "chain_sum",
        "accuracy_questions": 200,
        "recipe": {"rows": 16, "row_length": 1024},
        "optim": {"learning_rate": 1e-5, "warmup_steps": 20, "weight_decay": 0.0},
        "lora": None,
        "checkpoint_every": 100,
    }
    return study(
        "mistralai/Mistral-7B-v0.3", label="Mistral-7B, base against SFT on worked solutions", reasoning=None, tune=tune
    )
