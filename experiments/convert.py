"""Conversion of backbones into embedding models by one identical recipe: data, batches, training, export."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flax import nnx

from experiments.run import Model, Run
from hrsa_jax.data.prompts import query_prompt
from hrsa_jax.data.sampler import recipe_hash
from hrsa_jax.data.sources import Pair
from hrsa_jax.embedding.export import export_sentence_transformers, model_card
from hrsa_jax.embedding.step import ConversionConfig, contrastive_loss_fn, conversion_batches
from hrsa_jax.models.lora import LoRAConfig, add_lora, merge_lora, split_trainable
from hrsa_jax.runtime.config import to_json
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.loop import OptimConfig, init_state, make_optimizer, make_step, train


@dataclass(frozen=True)
class ConvertConfig:
    """lora None trains every weight. `recipe.seed` is replaced by each of `seeds`."""

    recipe: ConversionConfig
    optim: OptimConfig
    lora: LoRAConfig | None = field(default_factory=LoRAConfig)
    seeds: tuple[int, ...] = (0,)
    pairs: int = 1200
    sources: tuple[str, ...] = ("package_functions", "news_titles", "reasoning")
    checkpoint_every: int = 20

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"config.convert.seeds={self.seeds}: give at least one seed, each once")


def convert(
    backbone: Model, seed: int, config: ConvertConfig, pairs: list[Pair], pairs_fingerprint: str, run: Run
) -> tuple[Model, dict[str, Any]]:
    """Converts one backbone with one seed, or finds that done.

    Returns:
        The embedding model, and {"fingerprint", "recipe", "data_order", "stats", "steps", "loss"} of its training.
    """
    config = replace(config, recipe=replace(config.recipe, seed=seed))
    recipe = recipe_hash(config.recipe, config.optim, {"lora": to_json(config.lora)})
    name = f"{backbone.name}-Emb"
    model = replace(
        backbone,
        name=name,
        source=f"stages/convert/{name}-s{seed}/model",
        attention=config.recipe.attention,
        seed=seed,
    )
    inputs = {"backbone": backbone.fingerprint, "recipe": recipe, "pairs": pairs_fingerprint}
    with run.workdir.stage(f"convert/{model.key}", inputs) as stage:
        if not stage.done:
            run.log.line(f"Converting {backbone.name} into {model.name}: seed {seed}, {config.recipe.steps} steps")
            stats = _train(backbone, model, config, pairs, stage.path, run)
            rows = run.log.history(f"convert/{model.key}")
            stage.complete(
                {
                    "fingerprint": run.load(model.source).fingerprint,
                    "recipe": recipe,
                    "data_order": stats["data_order_hash"],
                    "stats": stats,
                    "steps": [row["step"] for row in rows],
                    "loss": [row["loss"] for row in rows],
                }
            )
    return replace(model, fingerprint=stage.result["fingerprint"]), stage.result


def _train(
    source: Model, model: Model, config: ConvertConfig, pairs: list[Pair], folder: Path, run: Run
) -> dict[str, Any]:
    """Trains and exports to `folder`/model; returns the statistics of the batches."""
    backbone, recipe = run.load(source.source), config.recipe
    batch_at, stats = conversion_batches(pairs, backbone.tokenizer, recipe)
    run.log.line(
        f"  {stats['pairs']} pairs from {', '.join(stats['datasets'])}; {stats['padding_share']:.0%} padding, "
        f"{stats['purity']:.0%} of each batch from one data set"
    )
    decoder = backbone.decoder if config.lora is None else add_lora(backbone.decoder, config.lora, seed=recipe.seed)
    graphdef, trainable, frozen = split_trainable(decoder, lora=config.lora is not None)
    optimizer = make_optimizer(config.optim, recipe.steps)
    state = train(
        init_state(trainable, frozen, optimizer),
        make_step(contrastive_loss_fn(graphdef, recipe), optimizer),
        batch_at,
        steps=recipe.steps,
        directory=folder,
        checkpoint_every=config.checkpoint_every,
        log=run.log,
        label=f"convert/{model.key}",
    )
    trained = nnx.merge(graphdef, state.trainable, state.frozen)
    trained = trained if config.lora is None else merge_lora(trained)
    instructions = sorted({pair.instruction for pair in pairs if pair.instruction})
    prompts = {f"query_{i}": query_prompt(text, recipe.template) for i, text in enumerate(instructions)}
    export_sentence_transformers(
        backbone.with_decoder(trained, source=model.source),
        folder / "model",
        pooling=recipe.pooling,
        normalize=True,
        prompts=prompts,
        max_length=max(recipe.max_query_length, recipe.max_passage_length),
        attention=recipe.attention,
        card=model_card(
            title=model.key,
            base=source.source,
            licence="see the backbone's own card",
            recipe={**to_json(recipe), **to_json(config.optim), "lora": to_json(config.lora)},
            data={name: f"{count} pairs" for name, count in stats["datasets"].items()},
            prompts=prompts,
        ),
    )
    return stats
