"""A small real conversion that test_crash.py starts, kills and starts again, each time in a process of its own."""

from pathlib import Path

import jax
import numpy as np

from hrsa_jax.data.packing import fill_rows, pack
from hrsa_jax.embedding.batches import ContrastiveBatch
from hrsa_jax.embedding.recipe import ConversionConfig
from hrsa_jax.embedding.step import contrastive_loss_fn
from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.lora import split_trainable
from hrsa_jax.runtime.logging import RunLog
from hrsa_jax.runtime.loop import OptimConfig, init_state, make_optimizer, make_step, train

MODEL = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
CONFIG = ConversionConfig(steps=1, batch_size=4, max_segments=8, chunks=2, dtype="float32", layout="packed")


def batch_at(step: int) -> ContrastiveBatch:
    """Eight random texts: queries 0 to 3 and their passages."""
    random = np.random.default_rng([5, step])
    texts = [random.integers(0, 64, random.integers(3, 16)).astype(np.int32) for _ in range(8)]
    layout = pack([len(text) for text in texts], 32, max_segments=8, rows=4)
    slots = layout.slots(8)
    return ContrastiveBatch(
        blocks=(fill_rows(layout, texts, [0] * 8),),
        query_slot_Q=slots[:4],
        passage_slot_P=slots[4:],
        positive_Q=np.arange(4, dtype=np.int32),
        mask_QP=np.ones((4, 4), bool),
        teacher_QK=None,
        tokens=np.float32(sum(map(len, texts))),
        purity=np.float32(1.0),
    )


def train_to_end(folder: str, steps: int) -> None:
    """Trains, or continues, and writes the final state to `<folder>/final.npz`."""
    decoder = Decoder(ModelConfig.from_hf(MODEL), seed=0)
    graphdef, trainable, frozen = split_trainable(decoder, lora=False)
    optimizer = make_optimizer(OptimConfig(learning_rate=1e-2, warmup_steps=4), steps)
    path = Path(folder)
    with (path / "log.txt").open("a") as stream:
        state = train(
            init_state(trainable, frozen, optimizer),
            make_step(contrastive_loss_fn(graphdef, CONFIG), optimizer),
            batch_at,
            steps=steps,
            directory=path,
            checkpoint_every=1,
            log=RunLog(path, stream=stream),
            label="crash",
        )
    leaves = jax.tree_util.tree_leaves_with_path(state.saved())
    np.savez(path / "final.npz", **{jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in leaves})
