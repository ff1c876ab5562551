"""Qwen3-0.6B-Base against its post-trained reasoning sibling, converted by the published recipe.

    python launch.py --config=configs/paper_qwen3.py --workdir=runs/paper_qwen3 --config.convert.folder=data

Needs the hub (models and MTEB) and the training files of configs/paper.py. An RLVR checkpoint of your own goes in by
--config.reasoning=FOLDER. Cost: estimated, not measured, some 4 hours on one H100 for each of six conversions. 3e18
model FLOPs a conversion; 10 GB for weights and optimiser.
On GPU add --config.convert.recipe.attention_kernel=cudnn. A/A pair: --config.reasoning=Qwen/Qwen3-0.6B-Base.
"""

from ml_collections import config_dict

from configs.paper import study


def get_config() -> config_dict.ConfigDict:
    """Settings of experiments/study.py."""
    return study(
        "Qwen/Qwen3-0.6B-Base",
        label="Qwen3-0.6B, base against post-trained, the published recipe",
        reasoning="Qwen/Qwen3-0.6B",
    )
