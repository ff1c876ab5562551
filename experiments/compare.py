"""HRSA: of any two models on any texts (`run`), and of the pairs of a study (`compare_pairs`).

python launch.py --config=configs/compare.py --workdir=runs/compare --config.a=MODEL --config.b=MODEL
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.announce import opening, short
from experiments.run import MeshConfig, Model, Run, device_mesh
from hrsa_jax.data.corpora import bbc_news, stdlib_functions
from hrsa_jax.data.reasoning_pairs import WORKED_FAMILY, reasoning_pairs
from hrsa_jax.embedding.encoder import Encoder
from hrsa_jax.hrsa.activation_files import SUFFIXES
from hrsa_jax.hrsa.activations import check_same_tokens, compare_models, token_states, token_texts
from hrsa_jax.hrsa.analysis import compare
from hrsa_jax.hrsa.display import curve_lines
from hrsa_jax.hrsa.floors import model_noise_floor
from hrsa_jax.hrsa.realignment import realignment_gap, realignment_index
from hrsa_jax.hrsa.results import Comparison, Curve
from hrsa_jax.hrsa.series import compare_by_label, trajectory
from hrsa_jax.hrsa.states import TokenStates, shared_row_mask
from hrsa_jax.models.backbone import load
from hrsa_jax.models.source import check_sources
from hrsa_jax.runtime.config import build, to_json
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import RunLog
from hrsa_jax.runtime.processes import index
from hrsa_jax.runtime.workdir import Workdir, fingerprint, write_json

BACKBONES, EMBEDDINGS = "base_vs_reasoning", "base-Emb_vs_reasoning-Emb"
CEILING = "base-Emb_vs_base-Emb_other_seed"


@dataclass(frozen=True)
class HrsaConfig:
    """Token-level measures read the first `max_tokens` tokens of `texts` texts; probes read `labelled_texts` others.

    seed: of the splits and subsamples; the texts themselves are drawn by it too.
    """

    texts: int = 64
    max_tokens: int = 64
    labelled_texts: int = 400
    labelled_max_tokens: int = 64
    preset: Literal["careful", "paper"] = "careful"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.texts < 8 or self.max_tokens < 2:
            raise InputError(
                f"config.hrsa: texts={self.texts}, max_tokens={self.max_tokens}: intervals over texts need at least 8 "
                "texts of 2 tokens"
            )


@dataclass(frozen=True)
class Texts:
    """tokens: texts for the token-level measures. labelled, labels: other texts and their classes, for the probes."""

    tokens: list[str]
    labelled: list[str]
    labels: list[str]


def compare_pairs(pairs: Mapping[str, tuple[Model, Model]], config: HrsaConfig, run: Run) -> dict[str, Any]:
    """{"pairs": {name: results.json fragment}, "realignment": {measure: curve}, "realignment_index": ...}; done once.

    The index needs the pair CEILING.

    All pairs share their texts and their rows: a row that is a sink in one model is left out of every comparison.
    """
    texts = study_texts(config)
    models = {model.key: model for pair in pairs.values() for model in pair}
    inputs = {
        "models": {key: model.fingerprint for key, model in models.items()},
        "pairs": {name: [a.key, b.key] for name, (a, b) in pairs.items()},
        "texts": fingerprint(asdict(texts)),
        "config": asdict(config),
    }
    with run.workdir.stage("hrsa", inputs) as stage:
        if not stage.done:
            stage.complete(_compare(pairs, models, texts, config, run))
    return stage.result


def study_texts(config: HrsaConfig) -> Texts:
    """Texts no model of the study was trained on: Python functions, worked solutions and news of the test halves."""
    random = np.random.default_rng(config.seed)
    articles = bbc_news("test")
    articles = [articles[i] for i in random.permutation(len(articles))]
    share = [config.texts // 3 + (place < config.texts % 3) for place in range(3)]
    functions = [function.body for function in stdlib_functions()]
    if len(functions) < share[0] or len(articles) < share[2] + config.labelled_texts:
        raise InputError(
            f"config.hrsa asks for {config.texts} texts and {config.labelled_texts} labelled ones, more than the "
            f"offline corpora hold ({len(articles)} news articles): lower them"
        )
    tokens = [functions[i] for i in random.permutation(len(functions))[: share[0]]]
    tokens += [pair.answer for pair in reasoning_pairs(WORKED_FAMILY, share[1], split="test", seed=config.seed)]
    tokens += [article.body for article in articles[: share[2]]]
    labelled = articles[share[2] :][: config.labelled_texts]
    return Texts(tokens, [f"{a.title}. {a.lead}" for a in labelled], [a.label for a in labelled])


def _compare(
    pairs: Mapping[str, tuple[Model, Model]],
    models: Mapping[str, Model],
    texts: Texts,
    config: HrsaConfig,
    run: Run,
) -> dict[str, Any]:
    tokens: dict[str, TokenStates | None] = {}
    pooled: dict[str, np.ndarray] = {}
    differing: int | None = None
    with run.log.progress("hidden states of the models", len(models)) as progress:
        first = next(iter(models.values()))
        for key, model in models.items():
            backbone = run.load(model.source)
            if differing is None and key != first.key:
                differing = check_same_tokens(run.load(first.source), backbone, texts.tokens)
            tokens[key] = token_states(backbone, texts.tokens, max_tokens=config.max_tokens)
            pooled[key] = Encoder(backbone, max_length=config.labelled_max_tokens).hidden(texts.labelled)
            progress.update(1, key)
    if differing is not None:
        tokens = dict.fromkeys(tokens)
    states = [state for state in tokens.values() if state is not None]
    mask = shared_row_mask(*states) if states and config.preset == "careful" else None
    comparisons = {}
    for name, (a, b) in pairs.items():
        run.log.line(f"  comparing {a.key} with {b.key}")
        comparisons[name] = compare(
            tokens[a.key],
            tokens[b.key],
            texts_a=pooled[a.key],
            texts_b=pooled[b.key],
            labels=texts.labels,
            preset=config.preset,
            seed=config.seed,
            row_mask=mask,
            progress=lambda stage: run.log.line(f"    {stage}"),
        )
        if differing is not None:
            comparisons[name].notes.append(
                f"the tokenizers give different ids, first for text {differing} ({texts.tokens[differing][:40]!r}): "
                "measures are over pooled texts, not tokens"
            )
    gaps = realignment_gap(comparisons[BACKBONES], comparisons[EMBEDDINGS])
    index = {}
    if CEILING in comparisons:
        index = realignment_index(comparisons[BACKBONES], comparisons[EMBEDDINGS], comparisons[CEILING])
    return {
        "pairs": {name: comparison.to_json() for name, comparison in comparisons.items()},
        "realignment": {measure: curve.to_json() for measure, curve in gaps.items()},
        "realignment_index": {measure: curve.to_json() for measure, curve in index.items()},
    }


# ---- two models or files of activations, on the user's texts -------------------------------------------------------


@dataclass(frozen=True)
class CompareConfig:
    """a, b: model sources, or files of activations (.npy, .safetensors; then no texts are needed).

    texts: a file of lines, or JSON lines with `text_field`; label_field: class of each text, for the probes;
    breakdown_field: easy/moderate/hard, a domain, ...: a few measures for each of its values. backbones, ceiling: two
    sources each, of the backbones behind a and b and of two trainings that differ by seed: together they give the
    realignment index. trajectory: snapshots that are compared with `a`, in order. noise_floor: `a` against itself in
    bfloat16, other batches and other padding.
    """

    a: str
    b: str
    texts: str | None = None
    text_field: str = "text"
    label_field: str | None = None
    breakdown_field: str | None = None
    preset: Literal["careful", "paper"] = "careful"
    attention: Literal["causal", "bidirectional"] | None = None
    max_texts: int = 64
    max_tokens: int = 64
    seed: int = 0
    noise_floor: bool = False
    backbones: tuple[str, ...] = ()
    ceiling: tuple[str, ...] = ()
    trajectory: tuple[str, ...] = ()
    keep_activations: bool = False
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        for name in ("backbones", "ceiling"):
            given = getattr(self, name)
            if len(given) not in (0, 2):
                raise InputError(f"config.{name} names {len(given)} models: give two, or none")
        if self.ceiling and not self.backbones:
            raise InputError("config.ceiling is given without config.backbones: the realignment index needs both")
        if self.max_texts < 8 or self.max_tokens < 2:
            raise InputError(
                f"config: max_texts={self.max_texts}, max_tokens={self.max_tokens}: intervals over texts need at least "
                "8 texts of 2 tokens"
            )
        if self.texts is None and not _are_files(self.a, self.b):
            raise InputError("config.texts is missing: name a file of texts (lines, or JSON lines)")


def run(config: dict[str, Any], path: str, *, command: str) -> int:
    """Compares two models in the folder `path`: tables on the terminal, figures, results.json; returns the status."""
    settings = build(CompareConfig, config)
    texts = None if settings.texts is None else read_texts(settings)
    sources = (settings.a, settings.b, *settings.backbones, *settings.ceiling, *settings.trajectory)
    check_sources(*(source for source in sources if not _are_files(source)))
    with Workdir(path, to_json(settings)) as workdir:
        log = RunLog(workdir.path)
        opening(log, workdir, f"compare: {settings.a} with {settings.b}, preset {settings.preset}", command=command)
        # Each of several processes has a store of its own; the states come from all of them either way.
        store = workdir.path / ("activations" if index() == 0 else f".activations{index()}")
        found = _Comparisons(settings, texts, store, log)
        figures = {"comparison": found.main.plot()}
        results: dict[str, Any] = {
            "schema": 1,
            "experiment": "compare",
            "command": command,
            "config": workdir.manifest["config"],
            "versions": workdir.manifest["versions"],
            "comparison": found.main.to_json(),
        }
        log.result(found.main.table())
        for name, part, figure in found.extras():
            results[name] = part
            figures |= {name: figure} if figure is not None else {}
        for name, figure in figures.items():
            if index() == 0:
                figure.savefig(workdir.path / f"{name}.svg")
        write_json(workdir.path / "results.json", results)
        if not settings.keep_activations or index() != 0:
            shutil.rmtree(store, ignore_errors=True)
        log.result(f"\nresults  {short(workdir.path / 'results.json')}")
        for name in figures:
            log.result(f"figure   {short(workdir.path / f'{name}.svg')}")
        log.close()
    return 0


@dataclass(frozen=True)
class LabelledTexts:
    """texts, and for each its class and its part of the breakdown (None where the config names no field)."""

    texts: list[str]
    labels: list[str] | None
    parts: list[str] | None


def read_texts(config: CompareConfig) -> LabelledTexts:
    """The texts of config.texts; InputError names file and line of whatever is wrong with them."""
    path = Path(config.texts or "")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"config.texts: {path} cannot be read ({error.strerror}): check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"config.texts: {path} is not UTF-8 text ({error}): save it as such") from error
    fields = (config.label_field, config.breakdown_field)
    if path.suffix not in (".jsonl", ".json"):
        if any(fields):
            raise InputError(f"config.texts: {path} holds plain lines, which have no fields: use JSON lines (.jsonl)")
        texts = [line.strip() for line in lines if line.strip()]
        return LabelledTexts(texts, None, None)
    columns: list[list[str]] = [[], [], []]
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number} is not valid JSON ({error}): correct or delete the line") from error
        for column, name in zip(columns, (config.text_field, *fields), strict=True):
            if name is None:
                continue
            value = row.get(name) if isinstance(row, dict) else None
            if value is None or (name == config.text_field and not (isinstance(value, str) and value.strip())):
                raise InputError(f"{path}:{number} has no usable field {name!r}: give every line one")
            column.append(str(value))
    texts, labels, parts = columns
    return LabelledTexts(texts, labels if config.label_field else None, parts if config.breakdown_field else None)


class _Comparisons:
    """The main comparison, and what else the config asks for, on the same texts and rows."""

    def __init__(self, config: CompareConfig, texts: LabelledTexts | None, store: Path, log: RunLog):
        self.config, self.log, self.store, self.mesh = config, log, store, device_mesh(config.mesh)
        self.texts, self.loaded = texts, {}  # type: ignore[var-annotated]
        others = (*config.backbones, *config.ceiling, *config.trajectory)
        self.chosen: list[int] = []
        self.mask: np.ndarray | None = None
        if texts is not None:
            self.chosen = token_texts(len(texts.texts), config.max_texts, config.seed)
            if others and config.preset == "careful":
                self.mask = shared_row_mask(*(self.states(s) for s in dict.fromkeys((config.a, config.b, *others))))
        elif others or config.noise_floor or config.breakdown_field:
            raise InputError("config.texts is missing: backbones, trajectories, floors and breakdowns run the models")
        self.main = self.compare(config.a, config.b, labels=None if texts is None else texts.labels)

    def model(self, source: str) -> Any:
        if source not in self.loaded:
            self.loaded.clear()  # one model in memory is enough: activations are kept on disk
            self.loaded[source] = load(source, mesh=self.mesh)
        return self.loaded[source]

    def states(self, source: str) -> TokenStates:
        """Token states of a source on the chosen texts, from disk if they were computed before."""
        assert self.texts is not None
        texts = [self.texts.texts[i] for i in self.chosen]
        config = self.config
        return token_states(
            self.model(source), texts, max_tokens=config.max_tokens, attention=config.attention, store=self.store
        )

    def compare(self, a: str, b: str, labels: list[str] | None = None) -> Comparison:
        left, right = (Path(s) if _are_files(s) else load(s, mesh=self.mesh) for s in (a, b))
        return compare_models(
            left,
            right,
            () if self.texts is None else self.texts.texts,
            labels,
            self.config.preset,
            max_texts=self.config.max_texts,
            max_tokens=self.config.max_tokens,
            attention=self.config.attention,
            seed=self.config.seed,
            row_mask=self.mask,
            store=self.store,
            progress=lambda stage: self.log.line(f"    {stage}"),
        )

    def _print(self, title: str, curves: Mapping[str, Curve]) -> None:
        self.log.result("\n".join(["", title, *curve_lines(curves)]))

    def extras(self) -> Iterator[tuple[str, Any, Any]]:
        """(name, results.json fragment, figure or None) of everything beyond the main comparison."""
        config = self.config
        if config.breakdown_field:
            assert self.texts is not None
            assert self.texts.parts is not None
            parts = [self.texts.parts[i] for i in self.chosen]
            a, b = self.states(config.a), self.states(config.b)
            by_label, notes = compare_by_label(a, b, parts, row_mask=self.mask, seed=config.seed)
            for label, comparison in by_label.items():
                self._print(f"{config.breakdown_field} = {label}", comparison.measures)
            for note in notes:
                self.log.result(f"note  {note}")
            yield "breakdown", {**{k: c.to_json() for k, c in by_label.items()}, "notes": notes}, None
        if config.noise_floor:
            assert self.texts is not None
            texts = [self.texts.texts[i] for i in self.chosen]
            floor = model_noise_floor(self.model(config.a), texts, max_tokens=config.max_tokens, seed=config.seed)
            for name, comparison in floor.items():
                self._print(f"noise floor of a: {name}", comparison.measures)
            yield "noise_floor", {name: comparison.to_json() for name, comparison in floor.items()}, None
        if config.trajectory:
            snapshots = {source: self.states(source) for source in config.trajectory}
            path = trajectory(snapshots, reference=self.states(config.a), seed=config.seed)
            self.log.result(f"\ntrajectory, mean over layers\n{path.table()}")
            yield "trajectory", path.to_json(), path.plot()
        if config.backbones:
            before = self.compare(config.backbones[0], config.backbones[1])
            gap = realignment_gap(before, self.main)
            yield "backbones", before.to_json(), None
            yield "realignment", {name: curve.to_json() for name, curve in gap.items()}, None
            if config.ceiling:
                top = self.compare(config.ceiling[0], config.ceiling[1])
                index = realignment_index(before, self.main, top)
                self._print("realignment index (1 = as close as two seeds)", index)
                yield "seed_ceiling", top.to_json(), None
                yield "realignment_index", {name: curve.to_json() for name, curve in index.items()}, None


def _are_files(*sources: str) -> bool:
    return all(Path(source).suffix in SUFFIXES for source in sources)
