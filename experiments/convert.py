"""Conversion of backbones into embedding models by one identical recipe: data, batches, training, export.

`convert` is a stage of a study. As an experiment of its own (`run`) this file converts one backbone, or a pair by the
same recipe, with every seed, scores them while they train, and writes results.json and report.html.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from experiments.announce import closing, opening
from experiments.conversion_report import terminal_table, write_report
from experiments.monitor import Evaluate, Monitor, MonitorConfig, task_evaluation
from experiments.run import MeshConfig, Model, Run, device_mesh
from experiments.training_data import DataFile, TrainingData, describe, offline_pairs, open_files
from hrsa_jax.data.prompts import query_prompt
from hrsa_jax.data.sampler import recipe_hash
from hrsa_jax.embedding.batches import conversion_batches
from hrsa_jax.embedding.encoder import Encoder
from hrsa_jax.embedding.export import export_sentence_transformers, model_card, stock_prompt_cosine
from hrsa_jax.embedding.recipe import ConversionConfig
from hrsa_jax.embedding.step import contrastive_loss_fn
from hrsa_jax.evaluation.offline_tasks import task_texts
from hrsa_jax.evaluation.suites import OFFLINE, suite
from hrsa_jax.models.backbone import Backbone
from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.lora import LoRAConfig, add_lora, merge_lora, split_trainable
from hrsa_jax.models.source import check_sources
from hrsa_jax.runtime.config import build, to_json
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.flops import training_flops_per_token
from hrsa_jax.runtime.logging import RunLog, counted
from hrsa_jax.runtime.loop import OptimConfig, TrainState, init_state, make_optimizer, make_step, train
from hrsa_jax.runtime.mesh import batch_parts, shard_batch
from hrsa_jax.runtime.processes import written_once
from hrsa_jax.runtime.workdir import Stage, Workdir, write_json


@dataclass(frozen=True)
class ConvertConfig:
    """lora None trains every weight. `recipe.seed` is replaced by each of `seeds`.

    The data are `files` (relative paths below `folder`), or else `pairs` offline pairs of `sources`. Texts that are
    also evaluated are refused unless `allow_overlap`. snapshots: steps whose models are kept under snapshots/.
    """

    recipe: ConversionConfig
    optim: OptimConfig
    lora: LoRAConfig | None = field(default_factory=LoRAConfig)
    seeds: tuple[int, ...] = (0,)
    pairs: int = 1200
    sources: tuple[str, ...] = ("package_functions", "news_titles", "reasoning")
    folder: str = ""
    files: tuple[DataFile, ...] = ()
    allow_overlap: bool = False
    checkpoint_every: int = 20
    snapshots: tuple[int, ...] = ()
    monitor: MonitorConfig | None = None

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"config.convert.seeds={self.seeds}: give at least one seed, each once")


@dataclass(frozen=True)
class BackboneConfig:
    """source: model source. reset: random weights of the same architecture instead (a control)."""

    source: str
    reset: bool = False
    seed: int = 0


@dataclass(frozen=True)
class ConvertRun:
    """pair: a second backbone (source "": none), converted by the same recipe in the same data order; the same source
    makes an A/A pair. checkpoints: gs:// address for those of training, instead of the workdir."""

    backbone: BackboneConfig
    convert: ConvertConfig
    pair: BackboneConfig = BackboneConfig("")
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoints: str = ""
    label: str = ""


def run(config: dict[str, Any], path: str, *, command: str) -> int:
    """Runs or continues a conversion in the folder `path`; returns the exit status."""
    setting = build(ConvertRun, config)
    check_sources(setting.backbone.source, setting.pair.source)
    started = time.monotonic()
    with Workdir(path, to_json(setting)) as workdir:
        log = RunLog(workdir.path)
        context = Run(workdir, log, mesh=device_mesh(setting.mesh), checkpoints=setting.checkpoints)
        opening(log, workdir, f"conversion of {setting.backbone.source}", command=command)
        chosen = {"base": setting.backbone} | ({"reasoning": setting.pair} if setting.pair.source else {})
        backbones = [named_backbone(name, backbone, context) for name, backbone in chosen.items()]
        data = training_data(setting.convert, context)
        monitor, template = setting.convert.monitor, setting.convert.recipe.template
        evaluate = task_evaluation(monitor, context, template) if monitor else None
        results = {
            "schema": 1,
            "kind": "conversion",
            "label": setting.label,
            "config": workdir.manifest["config"],
            "data": data.facts,
            "untrained": {model.name: _untrained(model, monitor, evaluate, context) for model in backbones},
            **convert_all(backbones, setting.convert, data, context, evaluate),
            "provenance": {"command": command, "versions": workdir.manifest["versions"]},
        }
        results["timings"] = {"this command": {"seconds": round(time.monotonic() - started, 1)}}
        write_json(workdir.path / "results.json", results)
        write_report(results, workdir.path / "report.html")
        files = {"results": workdir.path / "results.json", "report": workdir.path / "report.html"}
        log.result(f"\n{terminal_table(results)}\n")
        closing(log, workdir, results["timings"]["this command"]["seconds"], files=files)
        log.close()
    return 0


def training_data(config: ConvertConfig, run: Run, test_texts: dict[str, list[str]] | None = None) -> TrainingData:
    """Reads the config's pairs and compares them with `test_texts` (None: the texts of the offline monitor's tasks)."""
    if config.files:
        pairs = open_files(config.folder, config.files)
    else:
        pairs = offline_pairs(config.pairs, config.sources, config.recipe.hard_negatives)
    if test_texts is None:
        test_texts, monitor = {}, config.monitor
        if monitor is not None and monitor.suite == OFFLINE:
            folder = run.workdir.path / "stages" / "tasks"
            tasks = suite(OFFLINE, folder=folder, size=monitor.size, names=monitor.tasks)
            test_texts = task_texts(tasks.tasks())
    return describe(pairs, test_texts, allow_overlap=config.allow_overlap, log=run.log)


def convert_all(
    backbones: list[Model], config: ConvertConfig, data: TrainingData, run: Run, evaluate: Evaluate | None = None
) -> dict[str, Any]:
    """Every backbone with every seed; the manifest's `pairing` shows that they saw the same order and recipe.

    Returns:
        {"training": {key: result of `convert`}, "models": {key: description}, "pairing": ...}.

    Raises:
        InputError: two backbones of one seed saw different data.
    """
    training, models, pairing = {}, {}, {}
    for seed in config.seeds:
        hashes = {}
        for backbone in backbones:
            emb, result = convert(backbone, seed, config, data, run, evaluate)
            training[emb.key], models[emb.key] = result, to_json(emb)
            hashes[emb.name] = {"recipe": result["recipe"], "data_order": result["data_order"]}
        equal = len({str(found) for found in hashes.values()}) == 1
        pairing[f"seed {seed}"] = {**hashes, "equal": equal}
        if not equal:
            raise InputError(
                f"seed {seed}: the two conversions did not see the same data order and recipe ({hashes}), so they "
                "cannot be compared: their tokenizers or the training pairs differ"
            )
    run.workdir.record("pairing", {"pairs": data.fingerprint, **pairing})
    return {"training": training, "models": models, "pairing": pairing}


def convert(
    backbone: Model,
    seed: int,
    config: ConvertConfig,
    data: TrainingData,
    run: Run,
    evaluate: Evaluate | None = None,
) -> tuple[Model, dict[str, Any]]:
    """Converts one backbone with one seed, or finds that done.

    Returns:
        The embedding model, and {"fingerprint", "recipe", "data_order", "stats", "steps", "loss", "evaluation",
        "best_step", "stopped_at"} of its training.
    """
    config = replace(config, recipe=replace(config.recipe, seed=seed))
    recipe = recipe_hash(config.recipe, config.optim, {"lora": to_json(config.lora)})
    name = f"{backbone.name}-Emb"
    source = f"stages/convert/{name}-s{seed}/model"
    model = replace(backbone, name=name, source=source, attention=config.recipe.attention, seed=seed)
    inputs: dict[str, Any] = {"backbone": backbone.fingerprint, "recipe": recipe, "pairs": data.fingerprint}
    inputs |= {"monitor": to_json(config.monitor), "snapshots": list(config.snapshots)}
    with run.workdir.stage(f"convert/{model.key}", inputs) as stage:
        if not stage.done:
            run.log.line(f"  converting {backbone.name} into {model.name}, seed {seed}")
            found = _Conversion(backbone, model, config, data, stage, run, evaluate).result()
            rows = run.log.history(f"convert/{model.key}")
            stage.complete(
                {
                    "fingerprint": run.load(model.source).fingerprint,
                    "recipe": recipe,
                    "data_order": found["stats"]["data_order_hash"],
                    "steps": [row["step"] for row in rows],
                    "loss": [row["loss"] for row in rows],
                    **found,
                }
            )
    return replace(model, fingerprint=stage.result["fingerprint"]), stage.result


class _Conversion:
    """One training run in its stage's folder."""

    def __init__(
        self,
        source: Model,
        model: Model,
        config: ConvertConfig,
        data: TrainingData,
        stage: Stage,
        run: Run,
        evaluate: Evaluate | None,
    ):
        self._source, self._model, self._config, self._data = source, model, config, data
        self._folder, self._run, self._evaluate = stage.path, run, evaluate
        self._bucket = run.bucket(stage)
        self._backbone, self._recipe = run.load(source.source), config.recipe
        mesh = run.mesh
        self._place = partial(shard_batch, mesh) if mesh is not None else jax.device_put
        self._rows = batch_parts(mesh.shape) if mesh is not None else 1
        self._in_mesh = (lambda: jax.set_mesh(mesh)) if mesh is not None else nullcontext

    def result(self) -> dict[str, Any]:
        """Trains and exports to `model`; returns statistics of the data and the evaluations."""
        config, recipe, label = self._config, self._recipe, f"convert/{self._model.key}"
        batch_at, stats = conversion_batches(
            self._data.pairs, self._backbone.tokenizer, recipe, row_multiple=self._rows
        )
        self._show(stats)
        steps = stats["steps"]
        late = [step for step in config.snapshots if not 1 <= step <= steps]
        if late:
            raise InputError(
                f"config.convert.snapshots holds {late[0]}, but the run has steps 1 to {steps}: correct it"
            )
        adapted = config.lora is not None
        decoder = add_lora(self._backbone.decoder, config.lora, seed=recipe.seed) if config.lora else None
        self._graphdef, trainable, frozen = split_trainable(decoder or self._backbone.decoder, lora=adapted)
        optimizer = make_optimizer(config.optim, steps)
        rate = config.optim.learning_rate_at(steps)
        monitor: Any = nullcontext()
        if config.monitor is not None and self._evaluate is not None:
            monitor = Monitor(config.monitor, steps, label, self._folder, self._run.log, self._score)
        with self._in_mesh(), monitor as watch:
            state = train(
                init_state(trainable, frozen, optimizer),
                make_step(
                    contrastive_loss_fn(self._graphdef, recipe),
                    optimizer,
                    learning_rate=lambda step: rate(step // config.optim.accumulate),
                ),
                batch_at,
                steps=(watch and watch.stopped_at()) or steps,
                directory=self._folder,
                bucket=self._bucket,
                checkpoint_every=config.checkpoint_every,
                log=self._run.log,
                label=label,
                place=self._place,
                on_step=partial(self._between, watch),
                flops_per_token=self._flops(),
            )
            best, stopped, curve = None, None, []
            if watch is not None:
                best, stopped, curve = watch.best_step(), watch.stopped_at(), watch.curve()
                if config.monitor is not None and config.monitor.keep == "best":
                    state = watch.restore_best(state)
        kept = best if config.monitor is not None and config.monitor.keep == "best" else None
        self._export(state, self._folder / "model", _scores(curve, kept))
        return {"stats": stats, "evaluation": curve, "best_step": best, "stopped_at": stopped}

    def _between(self, watch: Monitor | None, done: int, state: TrainState) -> bool:
        if done in self._config.snapshots:
            self._export(state, self._folder / "snapshots" / f"step{done}", {})
        return watch is not None and watch.on_step(done, state)

    def _score(self, done: int, state: TrainState) -> dict[str, float]:
        assert self._evaluate is not None
        backbone = replace(self._trained(state), attention=self._recipe.attention)
        return self._evaluate(f"{self._model.key}-step{done}", backbone, self._folder / "evaluation")

    def _trained(self, state: TrainState) -> Backbone:
        decoder = nnx.merge(self._graphdef, state.trainable, state.frozen)
        decoder = decoder if self._config.lora is None else merge_lora(decoder)
        return self._backbone.with_decoder(decoder, source=self._model.source)

    def _export(self, state: TrainState, folder: Path, scores: dict[str, float]) -> None:
        recipe, config = self._recipe, self._config
        instructions = sorted({row.instruction for rows in self._data.pairs.values() for row in rows[:1000]} - {""})
        prompts = {f"query_{i}": query_prompt(text, recipe.template) for i, text in enumerate(instructions)}
        trained = self._trained(state)
        export_sentence_transformers(
            trained,
            folder,
            pooling=recipe.pooling,
            normalize=True,
            prompts=prompts,
            max_length=max(recipe.max_query_length, recipe.max_passage_length),
            attention=recipe.attention,
            card=model_card(
                title=self._model.key,
                base=self._source.source,
                licence=trained.licence,
                recipe={**to_json(recipe), **to_json(config.optim), "lora": to_json(config.lora)},
                data={name: counted(len(rows), "pair") for name, rows in self._data.pairs.items()},
                prompts=prompts,
                scores=scores,
                prompt_cosine=self._stock_cosine(trained, prompts),
            ),
        )

    def _stock_cosine(self, trained: Backbone, prompts: Mapping[str, str]) -> float:
        """How far stock sentence-transformers is off on the first queries, under the prompt that it reads worst."""
        encoder = Encoder(trained, attention=self._recipe.attention, max_length=self._recipe.max_query_length)
        queries = [row.query for rows in self._data.pairs.values() for row in rows[:8]]
        return min((stock_prompt_cosine(encoder, queries, prompt) for prompt in prompts.values()), default=1.0)

    def _flops(self) -> float:
        layers = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self._backbone.decoder.blocks)))
        return training_flops_per_token(layers, layers if self._config.lora is None else 0)

    def _show(self, stats: dict[str, Any]) -> None:
        log, tokens = self._run.log, stats["tokens"]
        write_json(self._folder / "data.json", {**stats, **self._data.facts})
        log.line(
            f"  {counted(stats['pairs'], 'pair')} from "
            f"{', '.join(f'{k} ({v})' for k, v in stats['datasets'].items())}; "
            f"{stats['pairs_without_negatives']} without negatives, {stats['duplicate_pairs']} repeated"
        )
        log.line(
            f"  {counted(stats['steps'], 'step')}, {stats['steps_per_epoch']} an epoch; mean tokens "
            f"{tokens['query']['mean']:.0f} a query and {tokens['passage']['mean']:.0f} a passage; truncated "
            f"{stats['share_truncated']['query']:.1%} and {stats['share_truncated']['passage']:.1%}"
        )
        log.line(
            f"  {stats['layout']} rows, {stats['padding_share']:.0%} padding; {stats['purity']:.0%} of each full batch "
            f"from one data set, {stats['mixed_batches']} batches of left-overs"
        )


def named_backbone(name: str, config: BackboneConfig, run: Run) -> Model:
    """The backbone of the config under a report name; one with random weights is written below the workdir."""
    if not config.reset:
        return run.model(name, config.source)
    folder = f"stages/reset/{name}"
    original = run.load(config.source)
    with run.workdir.stage(f"reset/{name}", {"source": original.fingerprint, "seed": config.seed}) as stage:
        if not stage.done:
            run.log.line(f"  random weights in place of those of {config.source}")
            decoder = Decoder(original.config, seed=config.seed)
            with written_once(stage.path / "model") as place:
                original.with_decoder(decoder, source=folder).export(place)
            stage.complete({})
    return run.model(name, f"{folder}/model")


def _untrained(
    model: Model, monitor: MonitorConfig | None, evaluate: Evaluate | None, run: Run
) -> dict[str, dict[str, float]]:
    """Scores of a backbone as it is, in both attention modes."""
    found: dict[str, dict[str, float]] = {}
    inputs = {"model": model.fingerprint, "monitor": to_json(monitor)}
    for attention in ("causal", "bidirectional") if evaluate is not None else ():
        with run.workdir.stage(f"untrained/{model.name}-{attention}", inputs) as stage:
            if not stage.done:
                assert evaluate is not None
                run.log.line(f"  scores of the untrained {model.name}, {attention}")
                backbone = replace(run.load(model.source), attention=attention)
                stage.complete(evaluate(f"{model.name}-{attention}", backbone, stage.path / "results"))
        found[attention] = stage.result
    return found


def _scores(curve: list[dict[str, Any]], step: int | None) -> dict[str, float]:
    """Task scores of the evaluation at `step`, or of the last one; none without evaluations."""
    rows = [row for row in curve if step is None or row["step"] == step]
    return {name: score for name, score in rows[-1].items() if name not in ("step", "mean")} if rows else {}
