"""The path between two models: merged models at given shares of the way, and HRSA of each against the first.

python launch.py --config=configs/merge.py --workdir=runs/merge --config.b=MODEL --config.texts=texts.jsonl
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from experiments.announce import opening, short
from experiments.compare import CompareConfig, read_texts
from experiments.compare import run as compare
from experiments.run import Run
from hrsa_jax.models.backbone import Backbone
from hrsa_jax.models.merge import Path, interpolate
from hrsa_jax.models.source import check_sources
from hrsa_jax.runtime.config import build, to_json
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import RunLog
from hrsa_jax.runtime.workdir import Workdir


@dataclass(frozen=True)
class MergeConfig:
    """a, b: model sources. shares: how far from a to b. texts: for HRSA along the path (None: merge only).

    text_field, max_texts, max_tokens, seed: as in CompareConfig.
    """

    a: str
    b: str
    path: Path = "linear"
    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    texts: str | None = None
    text_field: str = "text"
    max_texts: int = 64
    max_tokens: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.shares or any(not 0 <= share <= 1 for share in self.shares):
            raise InputError(f"config.shares={self.shares}: give shares of the way from a to b, each in 0 .. 1")


def run(config: dict[str, Any], path: str, *, command: str) -> int:
    """Merges (or finds that done), then compares every merged model with a; returns the exit status."""
    setting = build(MergeConfig, config)
    check_sources(setting.a, setting.b)
    names = ("texts", "text_field", "max_texts", "max_tokens", "seed")
    texts = {name: getattr(setting, name) for name in names}
    if setting.texts is not None:
        read_texts(CompareConfig(setting.a, setting.b, **texts))  # refused before anything is merged
    with Workdir(path, to_json(setting)) as workdir:
        log = RunLog(workdir.path)
        opening(log, workdir, f"merge: from {setting.a} to {setting.b}, {setting.path}", command=command)
        folders = [str(workdir.path / folder) for folder in _merge(setting, Run(workdir, log))]
        log.close()
    if setting.texts is None:
        return 0
    comparison = CompareConfig(a=folders[0], b=folders[-1], trajectory=tuple(folders), **texts)
    return compare(to_json(comparison), f"{path}/hrsa", command=command)


def _merge(setting: MergeConfig, run: Run) -> list[str]:
    """Folders below the workdir, one for each share, in the layout that everything loads."""
    a, b = run.load(setting.a), run.load(setting.b)
    _check_tokenizers(a, b)
    folders = []
    for share in setting.shares:
        inputs = {"a": a.fingerprint, "b": b.fingerprint, "share": share, "path": setting.path}
        name = f"merge/{setting.path}-{share:g}"
        folder = f"stages/{name}/model"
        with run.workdir.stage(name, inputs) as stage:
            if not stage.done:
                merged = interpolate(a.decoder, b.decoder, share, setting.path)
                a.with_decoder(merged, source=folder).export(stage.path / "model")
                stage.complete({"share": share})
        run.log.result(f"{share:g} of the way  {short(run.workdir.path / folder)}")
        folders.append(folder)
    return folders


def _check_tokenizers(a: Backbone, b: Backbone) -> None:
    """Merging models that read other ids for the same text makes noise."""
    if a.tokenizer.get_vocab() != b.tokenizer.get_vocab():
        raise InputError(f"merge: {a.source} and {b.source} have different vocabularies: merge models of one tokenizer")
