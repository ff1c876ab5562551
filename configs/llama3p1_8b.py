"""Llama-3.1-8B against DeepSeek-R1-Distill-Llama-8B (SFT on reasoning traces), converted by the published recipe.

    python launch.py --config=configs/llama3p1_8b.py --workdir=runs/llama3p1_8b --config.convert.folder=data

Needs the hub (the base is gated: accept its licence there), MTEB, and the training files of configs/paper.py. Cost:
estimated, not measured, 4e19 model FLOPs for each of six conversions. 130 GB of weights and optimiser state are
split over the devices (mesh.fsdp takes them all), so four of 80 GB at the least.
"""

from ml_collections import config_dict

from configs.paper import study


def get_config() -> config_dict.ConfigDict:
    """Settings of experiments/study.py."""
    return study(
        "meta-llama/Llama-3.1-8B",
        label="Llama-3.1-8B, base against R1-Distill, the published recipe",
        reasoning="deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    )
