"""Hard negatives for training files: every passage of a corpus is scored for every query, the close ones are kept.

The corpus's vectors go to a file and are read back block by block, so that memory does not grow with the corpus; a
data set is one stage, and a run that was cut off goes on with the next.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh

from experiments.announce import closing, opening
from experiments.run import MeshConfig, Run, device_mesh
from experiments.training_data import DataFile, open_files, rows_fingerprint
from hrsa_jax.data.negatives import Mined, MiningRule, filter_by_margin, known_answers, margin, mine_block
from hrsa_jax.data.prompts import QUERY_TEMPLATE, query_prompt
from hrsa_jax.data.sources import Pair, write_jsonl
from hrsa_jax.embedding.encoder import Encoder
from hrsa_jax.models.source import check_sources
from hrsa_jax.runtime.config import build, to_json
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import RunLog
from hrsa_jax.runtime.processes import written_once
from hrsa_jax.runtime.workdir import Workdir, write_json


@dataclass(frozen=True)
class MineRun:
    """encoder: the model that scores. files: each is mined by itself, from its own passages (positives and negatives).

    The rule's fields are those of hrsa_jax/data/negatives.MiningRule. least_negatives: rows that get fewer are dropped
    (0 keeps all). margin_at_least, margin_at_most: rows kept by best positive minus best negative (None: no bound).
    """

    encoder: str
    files: tuple[DataFile, ...]
    folder: str = ""
    count: int = 3
    relative_margin: float = 0.05
    absolute_margin: float = 0.0
    first_rank: int = 0
    last_rank: int | None = None
    least_negatives: int = 0
    margin_at_least: float | None = None
    margin_at_most: float | None = None
    template: str = QUERY_TEMPLATE
    max_length: int = 512
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    batch_tokens: int = 8192
    block: int = 4096
    mesh: MeshConfig = field(default_factory=MeshConfig)
    label: str = ""
    rule: MiningRule = field(init=False)

    def __post_init__(self) -> None:
        try:
            rule = MiningRule(self.count, self.relative_margin, self.absolute_margin, self.first_rank, self.last_rank)
        except ValueError as error:
            raise InputError(f"config: {error}") from error
        object.__setattr__(self, "rule", rule)


def run(config: dict[str, Any], path: str, *, command: str) -> int:
    """Mines every file into `<path>/mined/<name>.jsonl`; returns the exit status."""
    setting = build(MineRun, config)
    check_sources(setting.encoder)
    files = open_files(setting.folder, setting.files)
    started = time.monotonic()
    with Workdir(path, to_json(setting)) as workdir:
        log = RunLog(workdir.path)
        opening(log, workdir, f"mining with {setting.encoder}", command=command)
        context = Run(workdir, log, mesh=device_mesh(setting.mesh))
        length = min(setting.max_length, context.load(setting.encoder).config.max_position_embeddings)
        encoder = Encoder(
            context.load(setting.encoder), max_length=length, dtype=setting.dtype, batch_tokens=setting.batch_tokens
        )
        facts = {}
        for name, pairs in files.items():
            inputs = {
                "encoder": encoder.fingerprint,
                "config": to_json(setting),
                "rows": rows_fingerprint({name: pairs}),
            }
            with workdir.stage(f"mine/{name}", inputs) as stage:
                if not stage.done:
                    with written_once(stage.path) as place, written_once(workdir.path / "mined") as mined:
                        found = mine_file(pairs, encoder, setting, place, mined / f"{name}.jsonl", context)
                    stage.complete(found)
            facts[name] = stage.result
            log.result(f"{name}: " + ", ".join(f"{key} {value}" for key, value in stage.result.items()))
            if 2 * stage.result["without negatives"] > stage.result["written"]:
                log.result(_why_none(stage.result, setting.rule))
        results = {"schema": 1, "kind": "mining", "label": setting.label, "files": facts}
        results |= {"config": to_json(setting), "provenance": {"command": command}}
        write_json(workdir.path / "results.json", results)
        closing(log, workdir, time.monotonic() - started, files={"mined": workdir.path / "mined"})
        log.close()
    return 0


def mine_file(
    pairs: Sequence[Pair], encoder: Encoder, setting: MineRun, folder: Path, target: Path, run: Run
) -> dict[str, Any]:
    """Mines one data set into `target`; returns counts and the mean margin. folder: for the vectors meanwhile."""
    log = run.log
    folder.mkdir(parents=True, exist_ok=True)
    place_of: dict[str, int] = {}
    for pair in pairs:
        for text in (*pair.positives, *pair.negatives):
            place_of.setdefault(text, len(place_of))
    texts = list(place_of)
    vectors_Pd = _embed(texts, encoder, folder / "passages.npy", setting.block, log)
    answers = known_answers(pairs, place_of)
    counts = {"rows": len(pairs), "passages": len(texts)}
    counts |= dict.fromkeys(("too few negatives", "outside the margin", "written", "without negatives"), 0)
    gaps: list[float] = []

    def rows() -> Iterator[Pair]:
        with log.progress(f"negatives of {target.stem}", len(pairs)) as progress:
            for start in range(0, len(pairs), setting.block):
                here = pairs[start : start + setting.block]
                for pair, one in zip(
                    here, _mine(here, place_of, answers, vectors_Pd, encoder, setting, run.mesh), strict=True
                ):
                    if len(one.places) < setting.least_negatives:
                        counts["too few negatives"] += 1
                        continue
                    yield _with_negatives(pair, one, place_of, texts, vectors_Pd, encoder, setting)
                progress.update(len(here))

    def kept() -> Iterator[Pair]:
        bounds = {"at_least": setting.margin_at_least, "at_most": setting.margin_at_most}
        bounded = any(bound is not None for bound in bounds.values())
        for pair in rows():
            if bounded and not any(filter_by_margin([pair], **bounds)):
                counts["outside the margin"] += 1
                continue
            counts["written"] += 1
            counts["without negatives"] += not pair.negatives
            gap = margin(pair)
            gaps.extend([] if gap is None else [gap])
            yield pair

    target.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(target, kept())
    os.unlink(folder / "passages.npy")
    return {**counts, "mean margin": round(float(np.mean(gaps)), 4) if gaps else None}


def _why_none(counts: Mapping[str, Any], rule: MiningRule) -> str:
    """What to change where most rows have got no negative."""
    ranks = min(rule.ranks(counts["passages"]), counts["passages"] - 1)
    margins = [f"{rule.relative_margin:.0%} of its score"] + [f"{rule.absolute_margin:g}"] * bool(rule.absolute_margin)
    return (
        f"{counts['without negatives']} of {counts['written']} rows have no negative: of the {ranks} passages nearest "
        f"to a query, those that are not below its own answer by {' and '.join(margins)} are left out, because they "
        "may be answers too; a smaller config.relative_margin or a larger config.last_rank finds more"
    )


def _mine(
    pairs: Sequence[Pair],
    place_of: dict[str, int],
    answers: dict[str, set[int]],
    vectors_Pd: np.ndarray,
    encoder: Encoder,
    setting: MineRun,
    mesh: Mesh | None,
) -> list[Mined]:
    queries_Qd = _encode_queries(pairs, encoder, setting.template)
    blocks = (vectors_Pd[i : i + setting.block] for i in range(0, len(vectors_Pd), setting.block))
    positives = [np.asarray(vectors_Pd[[place_of[text] for text in pair.positives]]) for pair in pairs]
    known = [answers[pair.query] for pair in pairs]
    return mine_block(queries_Qd, positives, known, blocks, len(vectors_Pd), setting.rule, mesh=mesh)


def _encode_queries(pairs: Sequence[Pair], encoder: Encoder, template: str) -> np.ndarray:
    queries_Qd = np.zeros((len(pairs), encoder.dimension), np.float32)
    for instruction in dict.fromkeys(pair.instruction for pair in pairs):
        mine = [i for i, pair in enumerate(pairs) if pair.instruction == instruction]
        prompt = query_prompt(instruction, template)
        queries_Qd[mine] = encoder.encode([pairs[i].query for i in mine], prompt=prompt)
    return queries_Qd


def _with_negatives(
    pair: Pair,
    one: Mined,
    place_of: dict[str, int],
    texts: Sequence[str],
    vectors_Pd: np.ndarray,
    encoder: Encoder,
    setting: MineRun,
) -> Pair:
    """The pair with what was mined; every positive carries its score, too."""
    scores: tuple[float, ...] = (one.positive,)
    if len(pair.positives) > 1:
        query_d = _encode_queries([pair], encoder, setting.template)[0].astype(np.float64)
        mine_Pd = np.asarray(vectors_Pd[[place_of[text] for text in pair.positives]], np.float64)
        scores = tuple(map(float, mine_Pd @ query_d))
    return replace(
        pair,
        negatives=tuple(texts[place] for place in one.places),
        negative_ids=(),
        positive_scores=scores,
        negative_scores=one.scores,
    )


def _embed(texts: Sequence[str], encoder: Encoder, path: Path, block: int, log: RunLog) -> np.ndarray:
    """Vectors of all passages in a file that is read where it lies; float32 (P, d)."""
    vectors_Pd = np.lib.format.open_memmap(path, "w+", np.float32, (len(texts), encoder.dimension))
    with log.progress("passages", len(texts)) as progress:
        for start in range(0, len(texts), block):
            part = texts[start : start + block]
            vectors_Pd[start : start + len(part)] = encoder.encode(part)
            progress.update(len(part))
    vectors_Pd.flush()
    return np.load(path, mmap_mode="r", allow_pickle=False)
