"""What the paper claims (arXiv 2601.21192), put to finished studies: holds, does not hold, cannot tell, by fixed rules.

python launch.py --config=configs/claims.py --workdir=runs/claims --config.studies="('runs/a', 'runs/b')"

Reads results.json files only. Every rule counts layers whose 95% interval (over texts) lies wholly on one side; h_0 is
left out, because adapters do not touch the embedding table. At least half of the layers must be on one side.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.announce import short
from experiments.compare import BACKBONES, CEILING, EMBEDDINGS
from hrsa_jax.report import schema
from hrsa_jax.report.phrases import bracketed, points
from hrsa_jax.report.studies import compare
from hrsa_jax.runtime.config import build, to_json
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import RunLog, counted
from hrsa_jax.runtime.workdir import Workdir, write_json

HOLDS, FAILS, UNCLEAR, MISSING = "holds", "does not hold", "cannot tell", "not measured"
KEPT = 0.95  # a similarity at least this high counts as kept
NEAR = 0.05  # and a transferred probe within this of the target's own as read as well
NEIGHBOURS = "knn_10"

Results = Mapping[str, Any]
Side = Callable[[int, float, float], int]  # (place in the curve, low, high) -> 1 for the claim, -1 against it, 0


@dataclass(frozen=True)
class ClaimsConfig:
    """studies: workdirs (or results.json files) of finished studies, with a name in front if wanted (NAME=PATH)."""

    studies: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.studies:
            raise InputError("config.studies is empty: name at least one workdir of a finished study")


@dataclass(frozen=True)
class Finding:
    """One claim about one study: what was found in words, by which rule, and the word for it."""

    study: str
    claim: str
    found: str
    rule: str
    word: str


def run(config: dict[str, Any], path: str, *, command: str) -> int:
    """Writes claims.json and claims.md in the folder `path` and prints the table; returns the exit status."""
    setting = build(ClaimsConfig, config)
    studies = {}
    for text in setting.studies:
        name, equals, place = text.rpartition("=")
        studies[name if equals else Path(text).name] = schema.read(place)
    if len(studies) < len(setting.studies):
        raise InputError(f"config.studies={setting.studies}: two studies have one name, so write NAME=PATH")
    with Workdir(path, to_json(setting)) as workdir:
        log = RunLog(workdir.path)
        words = {row.name: row.corrected for row in compare(studies).rows} if len(studies) > 1 else {}
        findings = [finding for name, results in studies.items() for finding in claims(name, results, words.get(name))]
        findings += sft_restructures_more(studies)
        shares = [figure for name, results in studies.items() for figure in figures(name, results)]
        record = {
            "command": command,
            "findings": [asdict(finding) for finding in findings],
            "figures": [asdict(figure) for figure in shares],
        }
        write_json(workdir.path / "claims.json", record)
        tables = f"{table(findings)}\n{figure_table(shares)}"
        (workdir.path / "claims.md").write_text(tables, encoding="utf-8", errors="replace")
        for finding in findings:
            log.result(finding_text(finding))
        log.result(f"\ntable   {short(workdir.path / 'claims.md')}")
        log.close()
    return 0


@dataclass(frozen=True)
class Figure:
    """What part of a picture something else makes: a mean over the layers above h_0, by pair of models.

    seeds: the same of two conversions of the base that differ in the seed only (None where a study has one seed).
    """

    study: str
    question: str
    backbones: float
    embeddings: float
    seeds: float | None


def figures(name: str, results: Results) -> list[Figure]:
    """How much of the CKA picture sink tokens make, and how much of the k-NN gap bfloat16 alone makes."""
    hrsa = results.get("hrsa") or {}
    pairs = [hrsa.get(pair) or {} for pair in (BACKBONES, EMBEDDINGS)]
    ceiling = hrsa.get(CEILING) or {}
    floor = ((results.get("noise_floor") or {}).get("runs") or {}).get("bfloat16") or {}
    found = []
    for question, measure in (
        ("CKA, sinks left out, different texts", "cka"),
        ("CKA, with sinks", "cka_with_sinks"),
        ("CKA, biased, all pairs of rows", "cka_biased"),
        ("k-NN overlap, k = 10", NEIGHBOURS),
        ("k-NN overlap, with sinks", f"{NEIGHBOURS}_with_sinks"),
        ("correlation by dimension", "correlation"),
    ):
        if all(pair.get(measure) for pair in pairs):
            seeds = _mean(ceiling[measure]) if ceiling.get(measure) else None
            left, right = (_mean(pair[measure]) for pair in pairs)
            found.append(Figure(name, question, left, right, seeds))
    if floor.get(NEIGHBOURS) and all(pair.get(NEIGHBOURS) and _mean(pair[NEIGHBOURS]) < 1 for pair in pairs):
        lost = 1 - _mean(floor[NEIGHBOURS])
        left, right = (lost / (1 - _mean(pair[NEIGHBOURS])) for pair in pairs)
        found.append(Figure(name, "share of the k-NN gap that bfloat16 alone makes in the base", left, right, None))
    return found


def figure_table(found: Sequence[Figure]) -> str:
    """Markdown: a line a figure."""
    lines = ["| mean over layers | study | backbones | embedding models | two seeds of base-Emb |", "|" + "---|" * 5]
    for f in found:
        seeds = "" if f.seeds is None else f"{f.seeds:.3f}"
        lines.append(f"| {f.question} | {f.study} | {f.backbones:.3f} | {f.embeddings:.3f} | {seeds} |")
    return "\n".join(lines) + "\n"


def table(findings: Sequence[Finding]) -> str:
    """Markdown: a line a finding."""
    lines = ["| claim | study | | found | rule |", "|---|---|---|---|---|"]
    lines += [f"| {f.claim} | {f.study} | **{f.word}** | {f.found} | {f.rule} |" for f in findings]
    return "\n".join(lines) + "\n"


def finding_text(finding: Finding) -> str:
    """One finding in lines of 80 columns: the word and the claim, then what was found."""
    first = textwrap.wrap(f"{finding.word:15s} {finding.study}: {finding.claim}", 80, subsequent_indent=" " * 16)
    return "\n".join(first + textwrap.wrap(finding.found, 80, initial_indent="    ", subsequent_indent="    "))


def claims(name: str, results: Results, corrected: str | None = None) -> list[Finding]:
    """The claims that one study can speak of; corrected: its verdict after Holm's correction over several studies."""
    rows = [_null_effect(results, corrected)]
    backbones = (results.get("hrsa") or {}).get(BACKBONES) or {}
    floor = ((results.get("noise_floor") or {}).get("runs") or {}).get("bfloat16") or {}
    rows.append(
        _layers(
            "the reasoning backbone keeps the global geometry (CKA)",
            backbones.get("cka"),
            lambda _, low, high: 1 if low >= KEPT else -1 if high < KEPT else 0,
            f"CKA without sinks at least {KEPT}",
        )
    )
    for measure, claim in (
        (NEIGHBOURS, "but changes local neighbourhoods (k-NN, k = 10)"),
        ("correlation", "and drifts from the coordinate basis (correlation by dimension)"),
    ):
        rows.append(_below_floor(claim, backbones.get(measure), floor.get(measure)))
    gaps = results.get("realignment") or {}
    drifted = rows[-1].word == HOLDS
    reversed_ = _rises("conversion reverses the drift of the basis", gaps.get("correlation"))
    rows.append(reversed_ if drifted else _with(reversed_, UNCLEAR, f"{reversed_.found}; no drift to reverse"))
    rows.append(_rises("conversion pulls the two together: global geometry", gaps.get("cka")))
    rows.append(_rises("conversion pulls the two together: neighbourhoods", gaps.get(NEIGHBOURS)))
    for pair, claim in ((BACKBONES, "backbones"), (EMBEDDINGS, "embedding models")):
        measures = (results.get("hrsa") or {}).get(pair) or {}
        rows.append(_readout(f"a linear readout carries over: {claim}", measures))
    return [Finding(name, *row) for row in rows]


@dataclass(frozen=True)
class _Row:
    claim: str
    found: str
    rule: str
    word: str

    def __iter__(self) -> Any:
        return iter((self.claim, self.found, self.rule, self.word))


def _with(row: _Row, word: str, found: str) -> _Row:
    return _Row(row.claim, found, row.rule, word)


def _null_effect(results: Results, corrected: str | None) -> _Row:
    claim, rule = "no measurable gain (null effect)", "the study's verdict: 90% interval inside the margin"
    if corrected is not None:
        rule += "; of several studies after Holm's correction"
    null = results.get("null_effect") or {}
    if null.get("estimate") is None:
        return _Row(claim, "no benchmark", rule, MISSING)
    said, margin = corrected or null["word"], null["margin"]
    low, high = null["interval90"]
    ends = bracketed(low, high, margin)
    found = f"{points(null['estimate'], margin)} points, 90% {ends}, margin {margin:g}: {said}"
    if said != null["word"]:
        found += f' (alone, uncorrected: "{null["word"]}")'
    word = UNCLEAR
    if said.startswith("no advantage"):
        word = HOLDS
    elif said.startswith(("advantage", "disadvantage")):
        word = FAILS
    return _Row(claim, found, rule, word)


def _layers(claim: str, curve: Mapping[str, Any] | None, side: Side, rule: str) -> _Row:
    """Counts layers on either side; h_0 is left out."""
    rule = f"{rule}, in half of the layers at least"
    if not curve or not curve.get("interval95"):
        return _Row(claim, "no intervals", rule, MISSING)
    places = [
        place
        for place, layer in enumerate(curve["layers"])
        if layer > 0 and curve["interval95"][place] is not None and None not in curve["interval95"][place]
    ]
    if not places:
        return _Row(claim, "no intervals", rule, MISSING)
    sides = [side(place, *curve["interval95"][place]) for place in places]
    ahead, behind = sides.count(1), sides.count(-1)
    middle = places[len(places) // 2]
    low, high = curve["interval95"][middle]
    found = (
        f"{ahead} of {counted(len(places), 'layer')} for it, {behind} against; mean {_mean(curve):.3f}; "
        f"layer {curve['layers'][middle]}: {curve['value'][middle]:.3f} [{low:.3f}, {high:.3f}]"
    )
    word = HOLDS if 2 * ahead >= len(places) else FAILS if 2 * behind >= len(places) else UNCLEAR
    return _Row(claim, found, rule, word)


def _mean(curve: Mapping[str, Any]) -> float:
    """Over the layers above h_0."""
    values = [v for layer, v in zip(curve["layers"], curve["value"], strict=True) if layer > 0 and v is not None]
    return float(np.mean(values))


def _below_floor(claim: str, curve: Mapping[str, Any] | None, floor: Mapping[str, Any] | None) -> _Row:
    """Below what bfloat16 alone does to the base: a difference that is not the arithmetic's."""
    rule = "interval below the noise floor (the base against itself in bfloat16)"
    if not curve or not floor:
        return _Row(claim, "no noise floor" if curve else "no intervals", rule, MISSING)
    levels = [floor["value"][floor["layers"].index(layer)] for layer in curve["layers"]]

    def side(place: int, low: float, high: float) -> int:
        return 1 if high < levels[place] else -1 if low >= levels[place] else 0

    row = _layers(claim, curve, side, rule)
    return _with(row, row.word, f"{row.found}; floor {_mean(floor):.3f}")


def _rises(claim: str, gap: Mapping[str, Any] | None) -> _Row:
    """The paired gap of the embedding models over the backbones is above 0."""
    rule = "embedding models minus backbones above 0"
    return _layers(claim, gap, lambda _, low, high: 1 if low > 0 else -1 if high < 0 else 0, rule)


def _readout(claim: str, measures: Mapping[str, Any]) -> _Row:
    """A probe of the base on the reasoning model's features against that model's own probe."""
    rule = f"accuracy of the base's probe within {NEAR} of the reasoning model's own"
    moved, own = measures.get("probe_transfer"), measures.get("probe_target")
    if not moved or not own:
        return _Row(claim, "no probes", rule, MISSING)
    wanted = [own["value"][own["layers"].index(layer)] - NEAR for layer in moved["layers"]]

    def side(place: int, low: float, high: float) -> int:
        return 1 if low >= wanted[place] else -1 if high < wanted[place] else 0

    row = _layers(claim, moved, side, rule)
    return _with(row, row.word, f"{row.found}; own probe {_mean(own):.3f}")


def sft_restructures_more(studies: Mapping[str, Results]) -> list[Finding]:
    """Every SFT study against every GRPO study: are the backbones of the first less alike?"""
    of_method: dict[str, dict[str, Results]] = {"sft": {}, "grpo": {}}
    for name, results in studies.items():
        method = (results.get("reasoning") or {}).get("method")
        if method in of_method:
            of_method[method][name] = results
    found = []
    for sft_name, sft in of_method["sft"].items():
        for grpo_name, grpo in of_method["grpo"].items():
            for measure in ("cka", NEIGHBOURS, "correlation"):
                a, b = ((results["hrsa"].get(BACKBONES) or {}).get(measure) for results in (sft, grpo))
                found.append(Finding(f"{sft_name}, {grpo_name}", *_less_alike(measure, a, b)))
    return found


def _less_alike(measure: str, sft: Mapping[str, Any] | None, grpo: Mapping[str, Any] | None) -> _Row:
    claim, rule = f"SFT restructures more than RLVR: {measure}", "interval of SFT below that of RLVR"
    if not sft or not grpo or not grpo.get("interval95") or sft["layers"] != grpo["layers"]:
        return _Row(claim, "no intervals of equal layers", rule, MISSING)
    other = grpo["interval95"]

    def side(place: int, low: float, high: float) -> int:
        if other[place] is None or None in other[place]:
            return 0
        return 1 if high < other[place][0] else -1 if low > other[place][1] else 0

    row = _layers(claim, sft, side, rule)
    return _with(row, row.word, f"{row.found}; RLVR mean {_mean(grpo):.3f}")
