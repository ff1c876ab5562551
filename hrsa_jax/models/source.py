"""One resolver for model source strings: a local folder, a hub id, a .gguf file, or `package:NAME`."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.offline import offline_package

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_HUB_PATTERNS = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
#: second copies of the weights that some repositories carry in other layouts
_HUB_IGNORED = ["consolidated*", "original/*", "onnx/*", "openvino/*"]


@dataclass(frozen=True)
class ResolvedSource:
    """Where a model lies on this disk.

    kind: "folder" (HF layout) or "gguf". path: that folder or file. source: the string as given.
    revision: the hub commit, if it came from the hub.
    """

    kind: Literal["folder", "gguf"]
    path: Path
    source: str
    revision: str | None = None


def resolve(source: str | Path) -> ResolvedSource:
    """Finds a model by its source string, downloading from the hub only when it must.

    Args:
        source: a folder in HF layout, `org/name[@revision]`, a `.gguf` file, or `package:NAME`.

    Raises:
        InputError: nothing usable is there; the sentence says where it looked.
    """
    text = str(source).strip()
    here = _on_this_disk(text)
    if here is not None:
        return here
    name, _, revision = text.partition("@")
    return _from_hub(name, revision or None, text)


def check_sources(*sources: str | None) -> None:
    """Refuses what `resolve` would refuse, as far as that is known without a download; None and "" are passed over.

    Raises:
        InputError: as `resolve`.
    """
    for source in filter(None, sources):
        if _on_this_disk(source.strip()) is None and _offline():
            resolve(source)


def _on_this_disk(text: str) -> ResolvedSource | None:
    """Where the source lies; None for a hub id."""
    if not text or "\0" in text:
        raise InputError(
            f"model source {text!r} is empty or has a NUL byte: give a folder, hub id, .gguf or package:NAME"
        )
    if text.startswith("package:"):
        return _from_path(_weights_below(offline_package(text.removeprefix("package:"))), text)
    path = Path(text).expanduser()
    try:
        exists = path.exists()
    except OSError as error:
        raise InputError(f"model source {text!r} cannot be read ({error.strerror})") from None
    if exists:
        return _from_path(path, text)
    if text.endswith(".gguf") or path.is_absolute() or text.startswith((".", "~")):
        raise InputError(f"model source {text!r} does not exist on this machine: check the path")
    if not _HUB_ID.match(text.partition("@")[0]):
        raise InputError(
            f"model source {text!r} is no existing path, hub id (org/name[@revision]), .gguf file or package:NAME"
        )
    return None


def _from_path(path: Path, source: str) -> ResolvedSource:
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise InputError(f"model source {source!r} is a file but not .gguf: give its folder, or a .gguf file")
        return ResolvedSource("gguf", path, source)
    if (path / "config.json").exists():
        return ResolvedSource("folder", path, source)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) > 1:
        raise InputError(f"{path} has {len(ggufs)} .gguf files ({', '.join(p.name for p in ggufs)}): name one of them")
    if ggufs:
        return ResolvedSource("gguf", ggufs[0], source)
    models = [str(file.parent) for file in sorted(path.glob("stages/**/model/config.json"))]
    if models:
        raise InputError(f"{path} is the folder of a run, not a model: name one of its models, {' or '.join(models)}")
    raise InputError(f"{path} has neither config.json nor a .gguf file, so it is not a model folder: check the path")


def _weights_below(folder: Path) -> Path:
    """The first folder at or below `folder` that holds a model."""
    for candidate in (folder, *sorted(p for p in folder.rglob("*") if p.is_dir())):
        if (candidate / "config.json").exists() or any(candidate.glob("*.gguf")):
            return candidate
    return folder  # _from_path says what is missing


def _offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _from_hub(name: str, revision: str | None, source: str) -> ResolvedSource:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    offline = _offline()
    try:
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=_HUB_PATTERNS,
                ignore_patterns=_HUB_IGNORED,
                local_files_only=offline,
            )
        )
    except GatedRepoError:
        raise InputError(f"{name} on the hub is gated: accept its terms there and set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise InputError(f"{name} on the hub has no revision {revision!r}: check the part after @") from None
    except RepositoryNotFoundError:
        raise InputError(f"{name} is neither a folder here nor a model on the hub: check the spelling") from None
    except LocalEntryNotFoundError:
        why = "HF_HUB_OFFLINE=1 forbids the network" if offline else "the hub cannot be reached"
        raise InputError(
            f"{name}{f'@{revision}' if revision else ''} is not in the local hub cache and {why}: "
            f"download it where there is a network, or give a folder, a .gguf file or package:NAME"
        ) from None
    except Exception as error:  # a proxy's page in place of the hub's answer raises anything
        why = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        why = " ".join(why.split())[:300]
        raise InputError(
            f"{name} could not be fetched from the hub ({why}): try again, or give a local folder"
        ) from None
    resolved = _from_path(folder, source)
    return ResolvedSource(resolved.kind, resolved.path, source, revision=folder.name)
