"""Backbone: a loaded language model with its tokenizer, as notebooks and every experiment use it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.gguf import GGUFFile, config_fields
from hrsa_jax.models.licence import folder_licence, gguf_licence
from hrsa_jax.models.safetensors_files import SafetensorsFolder, read_json
from hrsa_jax.models.sentence_transformers_files import EmbeddingSettings, read_embedding_settings
from hrsa_jax.models.source import ResolvedSource, resolve
from hrsa_jax.models.tokenizer import check_vocabulary, load_folder_tokenizer, load_gguf_tokenizer
from hrsa_jax.models.weights import GGUFCheckpoint, load_weights, save_hf
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.mesh import to_host

_PAD_TO = 16  # rows are padded to a multiple, so that few shapes are compiled


@dataclass(frozen=True, eq=False)
class Backbone:
    """A model ready to run. `attention` is its native mode: what it was trained and saved with.

    files: what `fingerprint` covers; empty for a decoder made in this process, which is then hashed itself.
    stop_token_ids: end-of-text ids of config and generation_config. licence: as the checkpoint states it.
    """

    source: str
    config: ModelConfig
    decoder: Decoder
    tokenizer: Any
    attention: str
    embedding: EmbeddingSettings | None = None
    stop_token_ids: tuple[int, ...] = ()
    files: tuple[Path, ...] = ()
    revision: str | None = None
    licence: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of weight bytes, config and tokenizer: 16 hex digits."""
        digest = hashlib.sha256(repr(self.config).encode())
        tokenizer = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for setting in ("truncation", "padding"):  # state of the last call, not of the tokenizer
            tokenizer.pop(setting, None)
        digest.update(json.dumps(tokenizer, sort_keys=True).encode())
        for path in self.files:
            with path.open("rb") as file:
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
        if not self.files:
            for keys, variable in nnx.to_flat_state(nnx.state(self.decoder)):
                digest.update(repr(keys).encode())
                digest.update(np.ascontiguousarray(to_host(variable.get_value())).tobytes())
        return digest.hexdigest()[:16]

    @property
    def num_parameters(self) -> int:
        """How many numbers the decoder holds (a tied head counts once)."""
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self.decoder)))

    def tokenize(self, texts: Sequence[str], *, max_length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int32 (B, T) padded on the right, and their mask bool (B, T); special tokens as the tokenizer adds.

        Raises:
            InputError: no texts, or something that is not a string.
        """
        texts = list(texts) if not isinstance(texts, str) else [texts]
        bad = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
        if not texts or bad is not None:
            found = "no texts" if bad is None else f"text {bad} is {type(texts[bad]).__name__}, not a string"
            raise InputError(f"tokenize: {found}: give a list of strings")
        rows = self.tokenizer(texts, truncation=max_length is not None, max_length=max_length)["input_ids"]
        length = max(1, max(len(row) for row in rows))
        pad = self.tokenizer.pad_token_id or 0
        ids_BT = np.full((len(rows), length), pad, np.int32)
        mask_BT = np.zeros((len(rows), length), bool)
        for ids_T, mask_T, row in zip(ids_BT, mask_BT, rows, strict=True):
            ids_T[: len(row)] = row
            mask_T[: len(row)] = True
        return ids_BT, mask_BT

    def hidden_states(self, token_ids_BT: Any, mask_BT: Any, *, attention: str | None = None) -> np.ndarray:
        """All hidden states, float32 (L+1, B, T, D): h_0 embeddings .. h_L after the final norm; 0 where masked.

        `attention` None is the native mode.

        Raises:
            InputError: ids outside the vocabulary, shapes that differ, or padding before a text.
        """
        inputs, length = self._inputs(token_ids_BT, mask_BT)
        states = _hidden_states(self.decoder, *inputs, attention=attention or self.attention)
        return to_host(states)[:, :, :length]

    def logits(self, token_ids_BT: Any, mask_BT: Any, *, attention: str | None = None) -> np.ndarray:
        """Next-token logits float32 (B, T, V); 0 where masked.

        Raises:
            InputError: as `hidden_states`, or a checkpoint without a head.
        """
        inputs, length = self._inputs(token_ids_BT, mask_BT)
        return to_host(_logits(self.decoder, *inputs, attention=attention or self.attention))[:, :length]

    def _inputs(self, token_ids_BT: Any, mask_BT: Any) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], int]:
        """(tokens, segment ids, positions) padded to a multiple of _PAD_TO, and the length asked for."""
        tokens, mask = np.asarray(token_ids_BT), np.asarray(mask_BT, bool)
        if tokens.ndim != 2 or tokens.shape != mask.shape:
            raise InputError(f"token_ids_BT {tokens.shape} and mask_BT {mask.shape} must be two equal (B, T) shapes")
        if (np.diff(mask.astype(np.int8), axis=1) > 0).any():
            raise InputError("mask_BT has padding before or inside a text: pad on the right")
        outside = tokens[mask & ((tokens < 0) | (tokens >= self.config.vocab_size))]
        if outside.size:
            raise InputError(f"token id {outside[0]} is outside the vocabulary of {self.config.vocab_size}")
        B, T = tokens.shape
        padded = -(-max(T, 1) // _PAD_TO) * _PAD_TO
        tokens = np.pad(np.where(mask, tokens, 0).astype(np.int32), ((0, 0), (0, padded - T)))
        segments = np.pad(mask.astype(np.int32), ((0, 0), (0, padded - T)))
        positions = np.broadcast_to(np.arange(padded, dtype=np.int32), (B, padded))
        return (tokens, segments, positions), T

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """Continuations of the prompts, without the prompt; temperature 0 is greedy."""
        from hrsa_jax.models.generate import generate_tokens

        if not prompts:
            return []
        samples = generate_tokens(
            self.decoder,
            self.tokenizer(list(prompts))["input_ids"],
            max_new_tokens=max_new_tokens,
            eos_ids=self.stop_token_ids,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            batch_size=min(len(prompts), 32),
        )
        return [self.tokenizer.decode(list(tokens), skip_special_tokens=True) for tokens in samples.tokens]

    def export(self, folder: str | Path) -> None:
        """Writes an HF folder (config, safetensors, tokenizer) that transformers loads with equal logits."""
        folder = Path(folder)
        save_hf(self.decoder, folder)
        self.tokenizer.save_pretrained(str(folder))
        if set(self.stop_token_ids) != set(self.config.eos_token_ids):
            text = json.dumps({"eos_token_id": list(self.stop_token_ids)}, indent=2)
            (folder / "generation_config.json").write_text(text + "\n", encoding="utf-8")

    def with_decoder(self, decoder: Decoder, source: str) -> "Backbone":
        """The same tokenizer and settings around another decoder (trained or merged in this process)."""
        return replace(self, decoder=decoder, config=decoder.config, source=source, files=(), revision=None)


@jax.jit(static_argnames="attention")
def _hidden_states(
    decoder: Decoder, tokens_BT: jax.Array, segment_ids_BT: jax.Array, positions_BT: jax.Array, *, attention: str
) -> jax.Array:
    def collect(h_BTD: jax.Array) -> jax.Array:
        return jnp.where(segment_ids_BT[..., None] > 0, h_BTD, 0.0)

    return decoder(tokens_BT, segment_ids_BT, positions_BT, attention=attention, collect=collect).collected


@jax.jit(static_argnames="attention")
def _logits(
    decoder: Decoder, tokens_BT: jax.Array, segment_ids_BT: jax.Array, positions_BT: jax.Array, *, attention: str
) -> jax.Array:
    last_BTD = decoder(tokens_BT, segment_ids_BT, positions_BT, attention=attention).last_BTD
    return jnp.where(segment_ids_BT[..., None] > 0, decoder.logits(last_BTD), 0.0)


def load(source: str | Path, *, dtype: Any = jnp.float32, mesh: Mesh | None = None) -> Backbone:
    """Loads a backbone: a folder in HF layout, `org/name[@revision]`, a `.gguf` file, or `package:NAME`.

    Args:
        dtype: of the parameters; None keeps the checkpoint's own.
        mesh: the parameters go straight into their shards on it; None is one device.

    Raises:
        InputError: anything that is wrong with the checkpoint, in one sentence.

    Examples:
        >>> backbone = load("base")
        >>> ids_BT, mask_BT = backbone.tokenize(["one text", "a longer second text"])
        >>> backbone.logits(ids_BT, mask_BT).shape == (*ids_BT.shape, backbone.config.vocab_size)
        True
        >>> load("gone/elsewhere/far")
        Traceback (most recent call last):
        hrsa_jax.runtime.errors.InputError: model source 'gone/elsewhere/far' is no existing path, hub id ...
    """
    found = resolve(source)
    return (_load_gguf if found.kind == "gguf" else _load_folder)(found, dtype, mesh)


def _load_gguf(found: ResolvedSource, dtype: Any, mesh: Mesh | None) -> Backbone:
    file = GGUFFile(found.path)
    config = ModelConfig.from_hf(config_fields(file), where=str(found.path))
    tokenizer = load_gguf_tokenizer(file)
    check_vocabulary(tokenizer, config.vocab_size, str(found.path))
    checkpoint = GGUFCheckpoint(file, config, keep=mesh is not None)
    decoder = load_weights(config, checkpoint, where=str(found.path), mesh=mesh, dtype=dtype)
    pooling = file.pooling()
    return Backbone(
        source=found.source,
        config=config,
        decoder=decoder,
        tokenizer=tokenizer,
        attention="causal" if config.is_causal else "bidirectional",
        embedding=EmbeddingSettings(pooling=pooling) if pooling else None,
        stop_token_ids=config.eos_token_ids,
        files=(found.path,),
        revision=found.revision,
        licence=gguf_licence(file.metadata),
    )


def _load_folder(found: ResolvedSource, dtype: Any, mesh: Mesh | None) -> Backbone:
    folder = found.path
    config = ModelConfig.from_hf(read_json(folder / "config.json"), where=str(folder / "config.json"))
    settings = read_embedding_settings(folder)
    tokenizer = load_folder_tokenizer(folder)
    check_vocabulary(tokenizer, config.vocab_size, str(folder))
    checkpoint = SafetensorsFolder(folder)
    decoder = load_weights(config, checkpoint, where=str(folder), mesh=mesh, dtype=dtype)
    return Backbone(
        source=found.source,
        config=decoder.config,
        decoder=decoder,
        tokenizer=tokenizer,
        attention="causal" if config.is_causal else "bidirectional",
        embedding=settings,
        stop_token_ids=_stop_tokens(folder, config),
        files=tuple(checkpoint.files),
        revision=found.revision,
        licence=folder_licence(folder),
    )


def _stop_tokens(folder: Path, config: ModelConfig) -> tuple[int, ...]:
    """eos ids of config.json and generation_config.json together (chat models end turns with the latter's)."""
    path = folder / "generation_config.json"
    stored = read_json(path) if path.exists() else {}
    extra = stored.get("eos_token_id") if isinstance(stored, dict) else None
    ids = [*config.eos_token_ids, *(extra if isinstance(extra, list) else [extra])]
    return tuple(dict.fromkeys(i for i in ids if isinstance(i, int)))
