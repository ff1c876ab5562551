"""A training loop that saves a checkpoint every step and imports little: the cheapest thing to kill inside a save."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hrsa_jax.runtime.logging import RunLog
from hrsa_jax.runtime.loop import OptimConfig, init_state, make_optimizer, make_step, train


def loss(trainable, frozen, batch_BD):
    """Distance of a D x D matrix's outputs from those of a fixed one."""
    del frozen
    out_BD = jnp.tanh(batch_BD @ trainable["kernel_DD"]) + trainable["bias_D"]
    return jnp.mean((out_BD - jnp.roll(batch_BD, 1, axis=-1)) ** 2), {}


def train_to_end(folder: str, steps: int) -> None:
    """Trains, or continues, and writes the final state to `<folder>/final.npz`."""
    path, width = Path(folder), 64
    path.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(3)
    weights = {
        "kernel_DD": jnp.asarray(random.standard_normal((width, width)), jnp.float32),
        "bias_D": jnp.zeros(width),
    }
    optimizer = make_optimizer(OptimConfig(learning_rate=1e-2, warmup_steps=4), steps)
    state = init_state(weights, {}, optimizer)

    def batch_at(step: int) -> np.ndarray:
        return np.random.default_rng([7, step]).standard_normal((8, width)).astype(np.float32)

    with (path / "log.txt").open("a") as stream:
        state = train(
            state,
            make_step(loss, optimizer),
            batch_at,
            steps=steps,
            directory=path,
            checkpoint_every=1,
            log=RunLog(path, stream=stream),
            label="saving",
        )
    leaves = jax.tree_util.tree_leaves_with_path(state.saved())
    temporary = path / "final.tmp.npz"
    np.savez(temporary, **{jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in leaves})
    temporary.rename(path / "final.npz")
