"""HRSA of the pairs of a study: hidden states of every model on the same texts, all levels, the realignment gap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from experiments.run import Model, Run
from hrsa_jax.data.corpora import bbc_news, stdlib_functions
from hrsa_jax.data.reasoning_pairs import WORKED_FAMILY, reasoning_pairs
from hrsa_jax.embedding.encoder import Encoder
from hrsa_jax.hrsa.activations import check_same_tokens, token_states
from hrsa_jax.hrsa.analysis import compare, realignment_gap
from hrsa_jax.hrsa.states import TokenStates, shared_row_mask
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.workdir import fingerprint

BACKBONES, EMBEDDINGS = "base_vs_reasoning", "base-Emb_vs_reasoning-Emb"


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
    """{"pairs": {name: results.json fragment}, "realignment": {measure: curve}}; done once.

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
        run.log.line(f"Comparing {a.key} with {b.key}")
        comparisons[name] = compare(
            tokens[a.key],
            tokens[b.key],
            texts_a=pooled[a.key],
            texts_b=pooled[b.key],
            labels=texts.labels,
            preset=config.preset,
            seed=config.seed,
            row_mask=mask,
            progress=lambda stage: run.log.line(f"  {stage}"),
        )
        if differing is not None:
            comparisons[name].notes.append(
                f"the tokenizers give different ids, first for text {differing} ({texts.tokens[differing][:40]!r}): "
                "measures are over pooled texts, not tokens"
            )
    gaps = realignment_gap(comparisons[BACKBONES], comparisons[EMBEDDINGS])
    return {
        "pairs": {name: comparison.to_json() for name, comparison in comparisons.items()},
        "realignment": {measure: curve.to_json() for measure, curve in gaps.items()},
    }
