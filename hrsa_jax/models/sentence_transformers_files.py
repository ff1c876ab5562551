"""What a sentence-transformers folder says beyond the model: pooling, normalisation, prompts, length.

Read: modules.json, N_Pooling/config.json (names of 6.x and the older pooling_mode_* flags), N_Normalize,
config_sentence_transformers.json, sentence_bert_config.json. embedding/export.py writes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hrsa_jax.models.safetensors_files import read_json
from hrsa_jax.runtime.errors import InputError

#: sentence-transformers' pooling names -> ours
_POOLING = {"mean": "mean", "lasttoken": "last", "cls": "cls", "weightedmean": "weighted_mean"}
_FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
}


@dataclass(frozen=True)
class EmbeddingSettings:
    """How an embedding model makes its vectors.

    pooling: "mean", "last", "cls" or "weighted_mean". normalize: vectors have length 1. prompts: name -> prompt.
    default_prompt: name of the prompt used when none is asked for. max_length: in tokens, None for the model's own.
    include_prompt: whether the prompt's tokens are pooled too.
    """

    pooling: str = "mean"
    normalize: bool = True
    prompts: Mapping[str, str] = field(default_factory=dict)
    max_length: int | None = None
    include_prompt: bool = True
    default_prompt: str | None = None


def read_embedding_settings(folder: Path) -> EmbeddingSettings | None:
    """The settings of a sentence-transformers folder, or None for a plain model folder.

    Raises:
        InputError: a module or pooling that is not supported, named with its file.
    """
    modules_path = folder / "modules.json"
    if not modules_path.exists():
        return None
    modules = read_json(modules_path)
    if not isinstance(modules, list) or not all(isinstance(m, dict) and "type" in m for m in modules):
        raise InputError(f"{modules_path} is not a list of modules with a type each: fetch the file again")
    kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
    unknown = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    if unknown or kinds.count("Pooling") != 1 or kinds[0] != "Transformer" or modules[0].get("path", ""):
        raise InputError(
            f"{modules_path} lists {', '.join(kinds)}; supported is a Transformer in the folder itself, "
            f"one Pooling, and Normalize"
        )
    place = modules[kinds.index("Pooling")].get("path", "")
    if not isinstance(place, str) or place in (".", "..") or any(c in place for c in "/\\\0"):
        raise InputError(f"{modules_path}: the path {place!r} is not the name of a folder beside it: correct the file")
    pooling_path = folder / place / "config.json"
    pooling = read_json(pooling_path)
    extra = _optional(folder / "config_sentence_transformers.json")
    prompts = extra.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise InputError(f"{folder / 'config_sentence_transformers.json'}: prompts must map names to strings")
    return EmbeddingSettings(
        pooling=_pooling(pooling, pooling_path),
        normalize="Normalize" in kinds,
        prompts=prompts,
        max_length=_max_length(folder),
        include_prompt=bool(pooling.get("include_prompt", True)),
        default_prompt=extra.get("default_prompt_name"),
    )


def _optional(path: Path) -> dict[str, Any]:
    content = read_json(path) if path.exists() else {}
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold a JSON object: fetch the file again")
    return content


def _pooling(config: Any, path: Path) -> str:
    if not isinstance(config, dict):
        raise InputError(f"{path} does not hold a JSON object: fetch the file again")
    mode = config.get("pooling_mode")
    if mode is None:
        active = [name for flag, name in _FLAGS.items() if config.get(flag)]
        mode = active[0] if len(active) == 1 else active
    if not isinstance(mode, str) or mode not in _POOLING:
        raise InputError(f"{path}: pooling is {mode!r}; supported are {', '.join(_POOLING)}, one of them")
    return _POOLING[mode]


def _max_length(folder: Path) -> int | None:
    length = _optional(folder / "sentence_bert_config.json").get("max_seq_length")
    if length is None:
        length = _optional(folder / "tokenizer_config.json").get("model_max_length")
    # transformers writes 1e30 for "no limit"
    return int(length) if isinstance(length, int | float) and 1 <= length < 1e9 else None
