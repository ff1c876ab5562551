"""Tokenizers: always transformers' own, so that ids are its ids; those of GGUF files are converted once and cached."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hrsa_jax.models.gguf import GGUFFile
from hrsa_jax.runtime.errors import InputError

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")


def load_folder_tokenizer(folder: Path) -> Any:
    """The fast tokenizer of an HF folder (no network, no remote code).

    Raises:
        InputError: missing, unreadable, or without character offsets.
    """
    if not any((folder / name).exists() for name in _FILES):
        raise InputError(f"{folder} has no tokenizer ({', '.join(_FILES)} are all missing): copy tokenizer.json there")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise anything from OSError to bare Exception
        raise InputError(f"the tokenizer in {folder} cannot be loaded ({_first_line(error)})") from None
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer in {folder} has no fast version (tokenizer.json), which offsets need")
    return tokenizer


def load_gguf_tokenizer(file: GGUFFile) -> Any:
    """The tokenizer that transformers builds from a GGUF file.

    Its conversion takes seconds, so the result is kept under $HRSA_CACHE (default ~/.cache/hrsa_jax), in a folder named
    by the header's hash and transformers' version; that cache may be deleted at any time.

    Raises:
        InputError: transformers cannot build it.
    """
    import transformers

    key = hashlib.sha256(file.header_bytes + transformers.__version__.encode()).hexdigest()[:24]
    root = Path(os.environ.get("HRSA_CACHE") or Path.home() / ".cache" / "hrsa_jax") / "tokenizers"
    if (root / key / "tokenizer.json").exists():
        try:
            return load_folder_tokenizer(root / key)
        except InputError:
            shutil.rmtree(root / key, ignore_errors=True)  # damaged: convert again
    if "tokenizer.ggml.tokens" not in file.metadata:
        raise InputError(f"{file.path} holds no tokenizer (tokenizer.ggml.tokens is missing)")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(file.path.parent), gguf_file=file.path.name)
    except Exception as error:
        raise InputError(f"transformers cannot build the tokenizer of {file.path} ({_first_line(error)})") from None
    _store(tokenizer, root, key)
    return tokenizer


def _store(tokenizer: Any, root: Path, key: str) -> None:
    """Writes beside, then renames, so that a reader never meets half a tokenizer; a read-only home is no error."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as partial:
            tokenizer.save_pretrained(partial)
            Path(partial, key).mkdir()
            for file in Path(partial).iterdir():
                if file.is_file():
                    file.rename(Path(partial, key, file.name))
            Path(partial, key).rename(root / key)
    except OSError:
        pass


def check_vocabulary(tokenizer: Any, vocab_size: int, where: str) -> None:
    """A padded model vocabulary is fine; token ids the model has no row for are not.

    Raises:
        InputError: the tokenizer gives ids beyond the model's vocabulary.
    """
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocab_size:
        raise InputError(
            f"{where}: the tokenizer gives ids up to {largest} but vocab_size is {vocab_size}, so they belong to "
            f"different models"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
