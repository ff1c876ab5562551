"""What a checkpoint is, read from its headers: no weights are loaded, so that any size can be looked at anywhere."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.gguf import GGUFFile, config_fields
from hrsa_jax.models.licence import folder_licence, gguf_licence
from hrsa_jax.models.safetensors_files import SafetensorsFolder, read_json
from hrsa_jax.models.sentence_transformers_files import EmbeddingSettings, read_embedding_settings
from hrsa_jax.models.source import resolve
from hrsa_jax.models.tokenizer import check_vocabulary, load_folder_tokenizer, load_gguf_tokenizer
from hrsa_jax.models.weights import Checkpoint, GGUFCheckpoint, stored_parameters

_PROBE = "The quick brown fox jumps over the lazy dog, and 12 + 30 = 42."


@dataclass(frozen=True)
class TokenizerFacts:
    """vocabulary: ids it can give. before, after: special tokens it puts around a text. probe: tokens of a sentence."""

    kind: str
    vocabulary: int
    before: tuple[str, ...]
    after: tuple[str, ...]
    padding: str | None
    chat_template: bool
    probe: tuple[str, ...]


@dataclass(frozen=True)
class ModelFacts:
    """A checkpoint's facts. parameters: numbers in the decoder (a tied head counts once).

    stored: type name as stored -> how many numbers have it. bytes_on_disk: of the weight files.
    """

    source: str
    path: Path
    revision: str | None
    licence: str | None
    config: ModelConfig
    parameters: int
    stored: Mapping[str, int]
    bytes_on_disk: int
    embedding: EmbeddingSettings | None
    tokenizer: TokenizerFacts
    layers: Mapping[str, int] = field(default_factory=dict)  # parameters of one layer, of the embedding, of the head

    @property
    def attention(self) -> str:
        """The native mode."""
        return "causal" if self.config.is_causal else "bidirectional"

    def cache_bytes(self, *, itemsize: int) -> int:
        """Keys and values of one token."""
        return 2 * self.config.num_layers * self.config.num_kv_heads * self.config.head_dim * itemsize


def model_facts(source: str) -> ModelFacts:
    """Facts of any model source; everything but the values of the weights is checked as `load` checks it.

    Raises:
        InputError: anything that is wrong with the checkpoint, in one sentence.
    """
    found = resolve(source)
    checkpoint: Checkpoint
    if found.kind == "gguf":
        file = GGUFFile(found.path)
        config = ModelConfig.from_hf(config_fields(file), where=str(found.path))
        checkpoint, paths, tokenizer = GGUFCheckpoint(file, config), [found.path], load_gguf_tokenizer(file)
        licence, pooling = gguf_licence(file.metadata), file.pooling()
        embedding = EmbeddingSettings(pooling=pooling) if pooling else None
        types = {name: _ggml_type(file.entries[name].kind) for name in checkpoint.entries}
    else:
        config = ModelConfig.from_hf(read_json(found.path / "config.json"), where=str(found.path / "config.json"))
        folder = SafetensorsFolder(found.path)
        checkpoint, paths, tokenizer = folder, list(folder.files), load_folder_tokenizer(found.path)
        licence, embedding = folder_licence(found.path), read_embedding_settings(found.path)
        types = {name: entry.dtype.name for name, entry in folder.entries.items()}
    check_vocabulary(tokenizer, config.vocab_size, str(found.path))
    stored, shares = Counter[str](), Counter[str]()
    config, parameters = stored_parameters(config, checkpoint, where=str(found.path))
    for parameter, names in parameters.items():
        for name in names:
            size = prod(checkpoint.entries[name].shape)
            stored[types[name]] += size
            shares["one layer" if parameter.startswith("blocks") else parameter.split(".")[0]] += size
    shares["one layer"] //= config.num_layers
    return ModelFacts(
        source=source,
        path=found.path,
        revision=found.revision,
        licence=licence,
        config=config,
        parameters=sum(stored.values()),
        stored=dict(stored.most_common()),
        bytes_on_disk=sum(path.stat().st_size for path in paths),
        embedding=embedding,
        tokenizer=_tokenizer_facts(tokenizer),
        layers=dict(shares),
    )


def _tokenizer_facts(tokenizer: Any) -> TokenizerFacts:
    ids = tokenizer(_PROBE)["input_ids"]
    inner = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    start = next((i for i in range(len(ids)) if ids[i : i + len(inner)] == inner), 0)
    words = tokenizer.convert_ids_to_tokens
    return TokenizerFacts(
        kind=type(tokenizer).__name__,
        vocabulary=len(tokenizer),
        before=tuple(words(ids[:start])),
        after=tuple(words(ids[start + len(inner) :])),
        padding=tokenizer.pad_token,
        chat_template=bool(getattr(tokenizer, "chat_template", None)),
        probe=tuple(words(inner)),
    )


def _ggml_type(kind: int) -> str:
    from gguf import GGMLQuantizationType

    return str(GGMLQuantizationType(kind).name)
