"""A tiny language model over single characters, and a task that it can learn.

The task: one letter asks for any character of its own class (fifths of the vocabulary).
"""

import os
import signal
from pathlib import Path
from typing import Any

from hrsa_jax.models.config import ModelConfig, RopeConfig
from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.lora import split_trainable
from hrsa_jax.reasoning.grpo import GRPOConfig
from hrsa_jax.reasoning.policy import grpo_step
from hrsa_jax.reasoning.tasks import Problem
from hrsa_jax.runtime.logging import RunLog
from hrsa_jax.runtime.loop import OptimConfig, init_state, make_optimizer, train

ALPHABET = ["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyzQSA0123456789 :\n+-*=#."]
CONFIG = ModelConfig(
    family="llama",
    vocab_size=len(ALPHABET),
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    rms_norm_eps=1e-5,
    rope=RopeConfig(),
    tie_word_embeddings=True,
    qkv_bias=False,
    output_bias=False,
    mlp_bias=False,
    qk_norm=False,
    windows=(None, None),
    max_position_embeddings=512,
)


def make_tokenizer():
    """One token per character, a BOS id in front, as many checkpoints add it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({c: i for i, c in enumerate(ALPHABET)}, unk_token="."))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def make_decoder() -> Decoder:
    model = Decoder(CONFIG, seed=0)
    model.embed[...] = model.embed[...] * 20
    return model


LETTERS = "abcdefghij"
SETTINGS = GRPOConfig(questions=8, group=16, max_new_tokens=1, style="raw", dtype="float32", remat=False, seed=3)


def planted(tokenizer: Any) -> tuple[list[Problem], Any]:
    """(problems, reward)."""

    def reward(problem: Problem, text: str) -> float:
        ids = tokenizer.convert_tokens_to_ids([problem.question, *text[:1]])
        return float(len(ids) == 2 and ids[0] % 5 == ids[1] % 5)

    return [Problem(letter, "", "", "planted", {}) for letter in LETTERS], reward


def start(decoder: Decoder, optimizer: Any, *, lora: bool) -> tuple[Any, Any]:
    """(graphdef, state at step 0)."""
    graphdef, trainable, frozen = split_trainable(decoder, lora=lora)
    return graphdef, init_state(trainable, frozen, optimizer)


def planted_run(folder: str | Path, kill_at: int | None = None) -> tuple[Any, list[float]]:
    """Runs or continues five steps in `folder` through the training loop -> (weights, rewards of all steps so far).

    kill_at: the process kills itself after that step.
    """
    folder, tokenizer = Path(folder), make_tokenizer()
    folder.mkdir(exist_ok=True)
    problems, reward = planted(tokenizer)
    optimizer = make_optimizer(OptimConfig(learning_rate=2e-2, schedule="constant"), 5)
    graphdef, state = start(make_decoder(), optimizer, lora=False)
    log = RunLog(folder)
    step, batch_at = grpo_step(
        graphdef, SETTINGS, optimizer, problems, tokenizer, reward=reward, seen=log.history("tune")
    )

    def on_step(done: int, state: Any) -> None:
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = {"steps": 5, "directory": folder, "checkpoint_every": 1, "log": log, "label": "tune"}
    state = train(state, step, batch_at, on_step=on_step, **settings)
    rewards = [row["reward"] for row in log.history("tune")]
    log.close()
    return state.trainable, rewards
