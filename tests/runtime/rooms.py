"""What each room computes, small, on one device, on a mesh, or as one of several processes: the same numbers.

test_same_numbers.py calls the rooms; run as a script, this file is one of two processes of four devices each:
`python rooms.py PORT RANK FOLDER ROOM...` writes the results of the rooms to FOLDER/<rank>.npz.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

sys.path.append(str(Path(__file__).parents[1] / "experiments"))
sys.path.append(str(Path(__file__).parents[1] / "reasoning"))

import tiny
from planted import make_tokenizer, planted

from hrsa_jax.data.sources import Pair
from hrsa_jax.data.topk import exact_top_k
from hrsa_jax.embedding.batches import ContrastiveBatch, conversion_batches
from hrsa_jax.embedding.encoder import Encoder
from hrsa_jax.embedding.recipe import ConversionConfig
from hrsa_jax.embedding.step import contrastive_loss_fn
from hrsa_jax.hrsa.activations import compare_models
from hrsa_jax.models.backbone import Backbone, load
from hrsa_jax.models.lora import LoRAConfig, add_lora, split_trainable
from hrsa_jax.reasoning.grpo import GRPOConfig
from hrsa_jax.reasoning.policy import grpo_step
from hrsa_jax.runtime.loop import OptimConfig, init_state, make_optimizer, update_program
from hrsa_jax.runtime.mesh import make_mesh, shard_batch, to_host

Numbers = dict[str, np.ndarray]
WORDS = ["the", "sum", "of", "numbers", "is", "answer", "def", "return", "self", "list", "a", "dog", "sleeps", "tree"]
TEXTS = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 4 + i % 9)) + f" {i}" for i in range(40)]
RECIPE = ConversionConfig(
    steps=2, batch_size=8, hard_negatives=1, row_length=64, max_segments=8, dtype="float32", remat=False
)
# Adam's first steps are the gradient's sign: a large epsilon keeps rounding from becoming a step of its own
OPTIM = OptimConfig(learning_rate=1e-2, schedule="constant", eps=1e-3)


def write_models(folder: Path) -> None:
    """Two tiny models (`a`, `b`), and one over characters that GRPO can teach (`characters`)."""
    for seed, name in enumerate(("a", "b")):
        tiny.write_model(folder / name, seed=seed)
    tiny.write_model(folder / "characters", vocab_size=52, bos_token_id=0)
    make_tokenizer().save_pretrained(str(folder / "characters"))


def _training(backbone: Backbone, mesh: Mesh | None) -> tuple[Any, Any, Any, Any, ContrastiveBatch]:
    """(update program, saved, frozen, place, first batch) of a conversion of every weight."""
    rows = [Pair(TEXTS[i], "", (TEXTS[i + 1],), (TEXTS[i + 2],)) for i in range(24)]
    batch_at, _ = conversion_batches(rows, backbone.tokenizer, RECIPE, row_multiple=8)
    graphdef, trainable, frozen = split_trainable(backbone.decoder, lora=False)
    optimizer = make_optimizer(OPTIM, 2)
    state = init_state(trainable, frozen, optimizer)
    program = update_program(contrastive_loss_fn(graphdef, RECIPE), optimizer, state.saved())
    place = jax.device_put if mesh is None else partial(shard_batch, mesh)
    return program, state.saved(), state.frozen, place, batch_at(0)


def conversion(folder: Path, mesh: Mesh | None, facts: dict[str, Any] | None = None) -> Numbers:
    """Losses of two steps, and the weights after them. facts: gets the compiled step's text and the rows of a batch."""
    backbone = load(folder / "a", mesh=mesh)
    with jax.set_mesh(mesh) if mesh is not None else nullcontext():
        program, saved, frozen, place, batch = _training(backbone, mesh)
        compiled = program.lower(saved, frozen, place(batch)).compile()
        if facts is not None:
            facts |= {"hlo": compiled.as_text(), "rows": len(batch.blocks[0].tokens_RT), "model": backbone.config}
        found = {}
        for step in range(2):
            saved, metrics = compiled(saved, frozen, place(batch))
            found[f"loss {step}"] = to_host(metrics["loss"])
        for path, leaf in jax.tree_util.tree_leaves_with_path(saved["trainable"]):
            found[jax.tree_util.keystr(path)] = to_host(leaf)
    return found


def encoding(folder: Path, mesh: Mesh | None) -> Numbers:
    """Vectors of texts of many lengths, and their neighbours, as mining finds them."""
    encoder = Encoder(load(folder / "a", mesh=mesh), attention="bidirectional", batch_tokens=2048)
    vectors_ND = encoder.encode(TEXTS)
    queries_Qd, corpus = vectors_ND[:12], vectors_ND[12:]
    scores_Qk, places_Qk = exact_top_k(queries_Qd, (corpus[i : i + 16] for i in range(0, 28, 16)), 3, mesh=mesh)
    return {"vectors": vectors_ND, "negatives": places_Qk, "scores": scores_Qk}


def tuning(folder: Path, mesh: Mesh | None) -> Numbers:
    """Metrics and adapters of two GRPO steps."""
    backbone = load(folder / "characters", mesh=mesh)
    problems, reward = planted(backbone.tokenizer)
    # Adapters' gradients are smaller still: near 0 Adam multiplies the gradient's rounding by learning_rate / eps
    optimizer = make_optimizer(replace(OPTIM, eps=1e-2), 2)
    config = GRPOConfig(questions=4, group=8, max_new_tokens=2, style="raw", dtype="float32", remat=False, kl_coef=0.05)
    with jax.set_mesh(mesh) if mesh is not None else nullcontext():
        graphdef, trainable, frozen = split_trainable(add_lora(backbone.decoder, LoRAConfig(rank=2), seed=0), lora=True)
        state = init_state(trainable, frozen, optimizer)
        place: Callable[[Any], Any] = jax.device_put if mesh is None else partial(shard_batch, mesh)
        step, batch_at = grpo_step(
            graphdef, config, optimizer, problems, backbone.tokenizer, reward=reward, place=place
        )
        found = {}
        for number in range(2):
            state, metrics = step(state, batch_at(number))
            found |= {f"{name} {number}": np.float64(metrics[name]) for name in ("loss", "reward", "kl", "surprisal")}
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.trainable):
            found[jax.tree_util.keystr(path)] = to_host(leaf)
    return found


def comparing(folder: Path, mesh: Mesh | None) -> Numbers:
    """Every curve of a comparison of two models."""
    a, b = (load(folder / name, mesh=mesh) for name in ("a", "b"))
    comparison = compare_models(a, b, TEXTS, preset="paper", max_texts=12, max_tokens=16)
    return {name: np.asarray(curve.value) for name, curve in comparison.measures.items()}


ROOMS = {"conversion": conversion, "encoding": encoding, "tuning": tuning, "comparing": comparing}
MESHES = {"data 8": {"data": 8}, "fsdp 8": {"data": 1, "fsdp": 8}, "2 x 2 x 2": {"data": 2, "fsdp": 2, "tensor": 2}}


def main(port: str, rank: str, folder: str, *rooms: str) -> None:
    from hrsa_jax.runtime.processes import join, joining

    jax.config.update("jax_num_cpu_devices", 4)
    how = joining(f"localhost:{port}", 2, int(rank))
    assert how is not None
    join(how)
    assert len(jax.devices()) == 8
    mesh = make_mesh(**MESHES["2 x 2 x 2"])
    found = {f"{room} {name}": value for room in rooms for name, value in ROOMS[room](Path(folder), mesh).items()}
    np.savez(Path(folder) / f"{rank}.npz", **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
