"""Embedding models on disk: a folder that stock sentence-transformers loads with no remote code.

What makes the vectors agree: `is_causal: false` in config.json for bidirectional models (transformers >= 5.2), no
chat template (sentence-transformers 6 would wrap every text in it), prompts left out of the pool, and a query template
that ends in a newline (see data/prompts.py). `Encoder(folder)` reads all of it back.
"""

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flax import nnx

from hrsa_jax.data.tokenize import tokenize_texts
from hrsa_jax.embedding.encoder import Encoder
from hrsa_jax.embedding.pooling import POOLINGS, Pooling
from hrsa_jax.models.backbone import Backbone
from hrsa_jax.runtime import processes
from hrsa_jax.runtime.errors import InputError

# the names sentence-transformers has used since its first versions; 6.2 reads them too
_POOLING_FLAGS = {
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
    "cls": "pooling_mode_cls_token",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
}
_MARKER = "modules.json"


def export_sentence_transformers(
    backbone: Backbone,
    folder: str | Path,
    *,
    pooling: Pooling,
    normalize: bool,
    prompts: Mapping[str, str],
    max_length: int,
    attention: Literal["causal", "bidirectional"],
    card: str,
) -> Path:
    """Writes an embedding model; the folder appears at once, complete, or not at all.

    Args:
      backbone: LoRA merged into its weights.
      folder: must not exist, be empty, or hold an earlier export (which is replaced).
      pooling, normalize, max_length, attention: how the vectors are made.
      prompts: name -> text put in front and left out of the pool, e.g. {"query": query_prompt(...)}.
      card: README.md, see `model_card`.

    Returns:
      The folder.

    Raises:
      InputError: something else is in the folder's place, or a setting is unknown.
    """
    target = Path(folder)
    if pooling not in POOLINGS or attention not in ("causal", "bidirectional"):
        raise InputError(f"Export with pooling {pooling!r} and attention {attention!r} is not possible; check both.")
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / _MARKER).exists())):
        raise InputError(f"{target} exists and holds no exported model; choose another folder or move it away.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _with_attention(backbone, attention, max_length).export(partial)
        for name, content in _settings(backbone, pooling, normalize, prompts, max_length).items():
            path = partial / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(card, encoding="utf-8")
        partial.chmod(0o755)  # mkdtemp's folder is private
        if processes.index() == 0:
            if target.exists():
                shutil.rmtree(target)
            os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    processes.agreed(None)
    return target


def model_card(
    *,
    title: str,
    base: str,
    licence: str | None,
    recipe: Mapping[str, Any],
    data: Mapping[str, Any],
    prompts: Mapping[str, str],
    scores: Mapping[str, float] | None = None,
    prompt_cosine: float | None = None,
) -> str:
    """The README.md of an exported model: where it comes from, how it was made, how to use it.

    Args:
      title: heading.
      base: source of the backbone.
      licence: of the backbone's weights, as it states it.
      recipe, data: name -> value, shown as tables.
      prompts: as exported.
      scores: task -> score (0 to 1).
      prompt_cosine: from `stock_prompt_cosine`; stated where it is below 0.9999.
    """
    lines = [
        "---",
        "library_name: sentence-transformers",
        "pipeline_tag: sentence-similarity",
        "tags: [sentence-transformers, feature-extraction, hrsa_jax]",
        *([f"license: {json.dumps(licence)}"] if licence else []),
        "---",
        "",
        f"# {title}",
        "",
        f"A text-embedding model made from `{base}` by contrastive conversion with hrsa_jax.",
        f"Licence: {licence}; it is that of the backbone's weights."
        if licence
        else "Licence: the backbone states none; look it up before you pass this model on.",
        "",
        "## Use",
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        "model = SentenceTransformer('path/to/this/folder')",
        *(
            f"vectors = model.encode(texts, prompt_name={name!r})  # puts {text!r} in front"
            for name, text in prompts.items()
        ),
        "vectors = model.encode(passages, prompt='')",
        "```",
        "",
        "transformers 5.2 or later is needed (config.json says whether attention is causal).",
    ]
    if prompt_cosine is not None and prompt_cosine < 0.9999:
        lines += [
            "",
            f"Caution: this query template does not end in a newline. Stock sentence-transformers then leaves the "
            f"query's first word out of the pool: smallest cosine to the model's own query vectors "
            f"{prompt_cosine:.4f} on a sample. hrsa_jax's Encoder pools it.",
        ]
    for heading, table in (("Recipe", recipe), ("Training data", data)):
        lines += ["", f"## {heading}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {_cell(value)} |" for name, value in table.items()]
    if scores:
        lines += ["", "## Scores", "", "| task | score |", "|---|---|"]
        lines += [f"| {name} | {score:.4f} |" for name, score in scores.items()]
    return "\n".join(lines) + "\n"


def stock_prompt_cosine(encoder: Encoder, texts: Sequence[str], prompt: str) -> float:
    """How far stock sentence-transformers would be off for a prompt: smallest cosine to the encoder's own vectors.

    It counts the tokens of the prompt alone, which differs from the true span where a token reaches across.
    """
    tokenizer = encoder.backbone.tokenizer
    ids = tokenizer(prompt)["input_ids"]
    stock_span = len(ids) - (bool(ids) and ids[-1] in tokenizer.all_special_ids)
    spans_N = tokenize_texts(tokenizer, texts, prompt=prompt, max_length=encoder.max_length).pool_start
    if (spans_N == stock_span).all():
        return 1.0  # both leave out the same tokens
    own_ND = encoder.encode(texts, prompt=prompt)
    stock_ND = encoder.encode(texts, prompt=prompt, pool_from=stock_span)
    norms_N = np.linalg.norm(own_ND, axis=1) * np.linalg.norm(stock_ND, axis=1)
    return float(np.min(np.sum(own_ND * stock_ND, axis=1) / np.maximum(norms_N, 1e-12)))


def _with_attention(backbone: Backbone, attention: str, max_length: int) -> Backbone:
    """The backbone as it is to be saved; the one handed in keeps its own settings."""
    decoder = nnx.clone(backbone.decoder)
    decoder.config = replace(decoder.config, is_causal=attention == "causal")
    tokenizer = copy.deepcopy(backbone.tokenizer)
    tokenizer.chat_template = None
    tokenizer.model_max_length = max_length
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token is None:  # stock batches need one; padding is masked, so any token will do
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return replace(backbone.with_decoder(decoder, backbone.source), tokenizer=tokenizer)


def _settings(
    backbone: Backbone, pooling: str, normalize: bool, prompts: Mapping[str, str], max_length: int
) -> dict[str, Any]:
    """File name -> content of everything sentence-transformers reads beside the model."""
    kinds = ["Transformer", "Pooling"] + ["Normalize"] * normalize
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{kind}" if index else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    files: dict[str, Any] = {
        _MARKER: modules,
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": backbone.config.hidden_size,
            **{flag: name == pooling for name, flag in _POOLING_FLAGS.items()},
            "include_prompt": False,
        },
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": dict(prompts),
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }
    if normalize:
        files["2_Normalize/config.json"] = {}
    return files


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.replace("|", "\\|").replace("\n", "\\n")
