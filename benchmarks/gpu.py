"""One GPU: encoding against sentence-transformers, conversion, HRSA and attention, with random weights of real sizes.

    python -m benchmarks.gpu            # needs a GPU; writes benchmarks/results/gpu.json with the device's name
    python -m benchmarks.gpu --tiny     # the same code on tiny shapes, on any device; writes nothing

Goals: encoding at least 1.2 times the peer and 50% MFU at 512 tokens, training 50% MFU, HRSA of a 1.5B pair on 125,000
tokens under 60 s. Neither datasets, mteb, ml-collections nor gguf is imported.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from configs.architectures import ARCHITECTURES
from hrsa_jax.models.config import ModelConfig

_WORDS = 1000
_KS = (5, 10, 50)


@dataclass(frozen=True)
class Sizes:
    """models: names of configs/architectures.py. texts, tokens: of encoding. rows: of a training batch of `tokens`
    each; hrsa_tokens: rows that HRSA compares."""

    models: tuple[str, ...] = ("Qwen2.5-0.5B", "Qwen2.5-1.5B")
    texts: int = 512
    tokens: int = 512
    batch_tokens: int = 65536
    rows: int = 128
    hrsa_tokens: int = 125_000
    repeats: int = 3
    tiny: bool = False


TINY = Sizes(texts=4, tokens=16, batch_tokens=64, rows=4, hrsa_tokens=256, repeats=1, tiny=True)


def main(arguments: list[str]) -> int:
    """Runs all parts, prints a line for each and keeps them as JSON; returns the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on any device; nothing is written")
    tiny = parser.parse_args(arguments).tiny
    import jax

    device = jax.devices()[0]
    if device.platform != "gpu" and not tiny:
        print(
            f"error: benchmarks.gpu needs a GPU, JAX sees {device.device_kind}: give --tiny to try the code",
            file=sys.stderr,
        )
        return 2
    sizes = TINY if tiny else Sizes()
    found: dict[str, Any] = {"device": device.device_kind, "jax": jax.__version__, "results": {}}
    for name, part in _parts(sizes).items():
        found["results"][name] = part()
        print(f"{name:32s} " + ", ".join(f"{key} {_short(value)}" for key, value in found["results"][name].items()))
        if not tiny:  # each as it comes: a run that is stopped keeps what it measured
            path = Path(__file__).parent / "results" / "gpu.json"
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def _parts(sizes: Sizes) -> dict[str, Callable[[], dict[str, Any]]]:
    parts: dict[str, Callable[[], dict[str, Any]]] = {"attention": lambda: attention(sizes)}
    for name in sizes.models:
        parts[f"encode {name}"] = lambda name=name: encode(name, sizes)
        parts[f"convert {name}"] = lambda name=name: convert(name, sizes)
    parts[f"hrsa {sizes.models[-1]}"] = lambda: hrsa(sizes.models[-1], sizes)
    return parts


def architecture(name: str, *, tiny: bool) -> ModelConfig:
    """Sizes of that model; tiny: the same family with small ones."""
    fields = {key: value for key, value in next(a for a in ARCHITECTURES if a["name"] == name).items() if key != "name"}
    if tiny:
        small = {"vocab_size": 1024, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        fields |= {**small, "num_attention_heads": 4, "num_key_value_heads": 2}
    return ModelConfig.from_hf(fields, where=name)


def _words_tokenizer(vocab_size: int) -> Any:
    """One token a word, so that every text has exactly the length asked for.

    The words are added tokens of a byte-level tokenizer: transformers reads a Qwen2 folder's tokenizer as one of that
    kind, whatever it was.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<pad>"])
    tokenizer.add_tokens([AddedToken(_word(i), normalized=False) for i in range(min(_WORDS, vocab_size - 257))])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def _word(number: int) -> str:
    return f"w{number:05d}"


def _texts(count: int, tokens: int) -> list[str]:
    words = np.random.default_rng(0).integers(0, _WORDS, (count, tokens))
    return ["".join(map(_word, row)) for row in words]


def _backbone(name: str, tiny: bool) -> Any:
    from hrsa_jax.models.backbone import Backbone
    from hrsa_jax.models.decoder import Decoder

    config = architecture(name, tiny=tiny)
    return Backbone(name, config, Decoder(config), _words_tokenizer(config.vocab_size), "bidirectional")


def _seconds(call: Callable[[], object], repeats: int) -> float:
    """Least of the repeats, after the run that compiles."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def _layers(decoder: Any) -> int:
    import jax
    from flax import nnx

    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(decoder.blocks)))


def encode(name: str, sizes: Sizes) -> dict[str, Any]:
    """Tokens/s and MFU of ours and of sentence-transformers on the same exported model and texts, in bfloat16."""
    from hrsa_jax.embedding.encoder import Encoder
    from hrsa_jax.runtime.flops import peak_flops

    backbone, texts = _backbone(name, sizes.tiny), _texts(sizes.texts, sizes.tokens)
    encoder = Encoder(
        backbone, pooling="mean", max_length=sizes.tokens, dtype="bfloat16", batch_tokens=sizes.batch_tokens
    )
    ours, tokens = _seconds(lambda: encoder.encode(texts), sizes.repeats), sizes.texts * sizes.tokens
    mfu = 2.0 * _layers(backbone.decoder) * tokens / ours / peak_flops()
    found = {"tokens/s": tokens / ours, "MFU": mfu, "goal MFU": 0.5}
    return found | _peer(backbone, encoder, texts, tokens, ours, sizes)


def _peer(backbone: Any, encoder: Any, texts: list[str], tokens: int, ours: float, sizes: Sizes) -> dict[str, Any]:
    try:
        import torch
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        return {"peer": f"not measured: {error}"}
    from hrsa_jax.embedding.export import export_sentence_transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not sizes.tiny:
        return {"peer": "not measured: torch sees no GPU"}
    with tempfile.TemporaryDirectory() as folder:
        export_sentence_transformers(
            backbone,
            Path(folder) / "model",
            pooling="mean",
            normalize=True,
            prompts={},
            max_length=sizes.tokens,
            attention="bidirectional",
            card="benchmark",
        )
        kwargs = {"torch_dtype": torch.bfloat16}
        peer = SentenceTransformer(str(Path(folder) / "model"), device=device, model_kwargs=kwargs)
        rows = max(1, sizes.batch_tokens // sizes.tokens)
        theirs = _seconds(lambda: peer.encode(texts, batch_size=rows, show_progress_bar=False), sizes.repeats)
        both = encoder.encode(texts[:4]), peer.encode(texts[:4], show_progress_bar=False)
    cosine = float((both[0] * np.asarray(both[1], np.float32)).sum(axis=1).min())
    return {"peer": "sentence-transformers", "peer tokens/s": tokens / theirs, "ratio": theirs / ours, "cosine": cosine}


def convert(name: str, sizes: Sizes) -> dict[str, Any]:
    """Seconds and MFU of a contrastive step, full training in bfloat16, with each attention that this device runs."""
    import jax

    from hrsa_jax.embedding.recipe import ConversionConfig
    from hrsa_jax.embedding.step import contrastive_loss_fn
    from hrsa_jax.models.decoder import Decoder
    from hrsa_jax.models.lora import split_trainable
    from hrsa_jax.runtime.flops import peak_flops, training_flops_per_token
    from hrsa_jax.runtime.loop import OptimConfig, init_state, make_optimizer, make_step

    recipe = ConversionConfig(steps=10, batch_size=sizes.rows // 2, hard_negatives=0, layout="bucketed")
    decoder = Decoder(architecture(name, tiny=sizes.tiny))
    flops = training_flops_per_token(_layers(decoder), _layers(decoder)) * sizes.rows * sizes.tokens
    graphdef, trainable, frozen = split_trainable(decoder, lora=False)
    optimizer = make_optimizer(OptimConfig(1e-5, schedule="constant"), 10)
    batch, found = jax.device_put(_batch(decoder.config.vocab_size, sizes)), {}
    for kernel in ("auto", "cudnn") if jax.default_backend() == "gpu" else ("auto",):
        state = [init_state(trainable, frozen, optimizer)]
        step = make_step(contrastive_loss_fn(graphdef, replace(recipe, attention_kernel=kernel)), optimizer)

        def run(step: Any = step, state: list[Any] = state) -> None:
            state[0], metrics = step(state[0], batch)
            float(metrics["loss"])

        seconds = _seconds(run, sizes.repeats)
        found |= {f"{kernel} s": seconds, f"{kernel} MFU": flops / seconds / peak_flops()}
        state.clear()
    return {**found, "goal MFU": 0.5}


def _batch(vocab_size: int, sizes: Sizes) -> Any:
    """Full rows of one text each: half of them queries, the other half their passages."""
    from hrsa_jax.data.packing import PackedRows
    from hrsa_jax.embedding.batches import ContrastiveBatch

    shape, queries = (sizes.rows, sizes.tokens), sizes.rows // 2
    tokens = np.random.default_rng(0).integers(0, vocab_size, shape).astype(np.int32)
    positions = np.broadcast_to(np.arange(sizes.tokens, dtype=np.int32), shape)
    number = np.arange(queries, dtype=np.int32)
    return ContrastiveBatch(
        blocks=(PackedRows(tokens, np.ones(shape, np.int32), positions, np.ones(shape, bool)),),
        query_slot_Q=number,
        passage_slot_P=number + queries,
        positive_Q=number,
        mask_QP=np.ones((queries, queries), bool),
        teacher_QK=None,
        tokens=np.float32(tokens.size),
        purity=np.float32(1.0),
    )


def hrsa(name: str, sizes: Sizes) -> dict[str, Any]:
    """Seconds of HRSA of two models: hidden states of all layers, then four measures of each pair of equal layers."""
    import jax
    import jax.numpy as jnp

    from hrsa_jax.hrsa.geometry import knn_overlap, linear_cka
    from hrsa_jax.hrsa.representation import dimension_correlation, orthogonal_procrustes
    from hrsa_jax.models.decoder import Decoder

    config = architecture(name, tiny=sizes.tiny)
    rows = max(1, sizes.hrsa_tokens // sizes.tokens)
    shape = (rows, sizes.tokens)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, shape).astype(np.int32)
    positions = np.broadcast_to(np.arange(sizes.tokens, dtype=np.int32), shape)
    at_once = max(1, sizes.batch_tokens // sizes.tokens)

    @jax.jit
    def states(decoder: Any, tokens_BT: Any, positions_BT: Any) -> Any:
        output = decoder(
            tokens_BT,
            jnp.ones_like(tokens_BT),
            positions_BT,
            attention="causal",
            collect=lambda h_BTD: h_BTD.reshape(-1, h_BTD.shape[-1]),
            dtype=jnp.bfloat16,
        )
        return output.collected

    def of(seed: int) -> Any:
        decoder = Decoder(config, seed=seed)
        blocks = [slice(start, start + at_once) for start in range(0, rows, at_once)]
        return jnp.concatenate([states(decoder, tokens[block], positions[block]) for block in blocks], axis=1)

    started = time.perf_counter()
    a, b = jax.block_until_ready((of(0), of(1)))
    forward = time.perf_counter() - started
    started = time.perf_counter()
    for layer in range(config.num_layers + 1):
        x, y = a[layer], b[layer]
        ks = [k for k in _KS if k < len(x)]
        jax.block_until_ready((linear_cka(x, y), knn_overlap(x, y, ks), dimension_correlation(x, y)))
        orthogonal_procrustes(x, y)
    measures = time.perf_counter() - started
    return {"tokens": rows * sizes.tokens, "forward s": forward, "measures s": measures, "goal s": 60.0}


def attention(sizes: Sizes) -> dict[str, Any]:
    """Largest error of the fused kernel and its gradients, both modes, rows padded on the right."""
    import jax

    if jax.default_backend() != "gpu":
        return {"cudnn": "not run: no GPU"}
    return {f"cudnn {mode}": fused_error(mode, tokens=sizes.tokens) for mode in ("causal", "bidirectional")}


def fused_error(mode: str, *, tokens: int) -> float:
    """Largest error of cudnn attention and its gradients in bfloat16 against float32 "xla", relative to the largest
    value; rows of different lengths."""
    import jax
    import jax.numpy as jnp

    from hrsa_jax.models.attention import attend

    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (4, tokens, 8, 64)) * 64**-0.5
    k, v = (jax.random.normal(key, (4, tokens, 2, 64)) for key in keys[1:])
    lengths = jnp.array([tokens, tokens // 2, tokens // 3, 1])
    segments = (jnp.arange(tokens) < lengths[:, None]).astype(jnp.int32)

    def run(implementation: str, dtype: Any) -> tuple[Any, Any]:
        def total(q: Any, k: Any, v: Any) -> tuple[Any, Any]:
            parts = (x.astype(dtype) for x in (q, k, v))
            out = attend(*parts, segments, attention=mode, implementation=implementation)
            out = jnp.where(segments[..., None, None] > 0, out, 0.0)
            return (out**2).sum(), out

        (_, out), grads = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)
        return out, grads

    rounded = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in (q, k, v)]
    q, k, v = rounded  # both sides start from the same numbers
    found, wanted = (jax.tree.leaves(run(*kind)) for kind in (("cudnn", jnp.bfloat16), ("xla", jnp.float32)))
    return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in zip(found, wanted, strict=True))


def _short(value: Any) -> str:
    return f"{value:,.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
