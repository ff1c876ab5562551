"""Qwen2.5-1.5B against its SimpleRL-Zoo checkpoint (RLVR from the base), converted by the published recipe.

    python launch.py --config=configs/paper_qwen2p5.py --workdir=runs/paper_qwen2p5 --config.convert.folder=data

Needs the hub (models and MTEB) and the training files of configs/paper.py. Cost: estimated, not measured, some
10 hours on one H100 for each of six conversions (two backbones, three seeds). 1.7M rows of 5 texts are about 1e9 tokens
and 8e18 model FLOPs a conversion, some of it computed twice; 24 GB for weights and optimiser, and one chunk of
65,536 tokens.
Seven billion parameters: --config.base=Qwen/Qwen2.5-7B --config.reasoning=hkust-nlp/Qwen-2.5-7B-SimpleRL-Zoo.
On GPU add --config.convert.recipe.attention_kernel=cudnn. A/A pair: --config.reasoning=Qwen/Qwen2.5-1.5B.
"""

from ml_collections import config_dict

from configs.paper import study


def get_config() -> config_dict.ConfigDict:
    """Settings of experiments/study.py."""
    return study(
        "Qwen/Qwen2.5-1.5B",
        label="Qwen2.5-1.5B, base against SimpleRL-Zoo, the published recipe",
        reasoning="hkust-nlp/Qwen-2.5-1.5B-SimpleRL-Zoo",
    )
