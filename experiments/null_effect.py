"""From benchmark rows to the claim: reasoning-Emb minus base-Emb with its interval, word, power and controls."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from hrsa_jax.evaluation.statistics import (
    components,
    control_shows,
    crossed_interval,
    needed_sizes,
    one_seed_interval,
    power,
    sign_flip_p,
    verdict,
)
from hrsa_jax.runtime.errors import InputError

BASE, REASONING, CONTROL = "base-Emb", "reasoning-Emb", "control-Emb"

Scores = dict[tuple[str, int | None, str], float]


def null_effect(
    rows: Sequence[dict[str, Any]],
    left_out: Collection[str],
    margin: float,
    seeds: Sequence[int],
    control: str | None = None,
) -> dict[str, Any]:
    """results.json's `null_effect`.

    rows: of `experiments.evaluate.benchmark`. left_out: tasks from the family the variant was tuned on; they are shown
    apart. margin: in points. control: what the positive control (rows of "control-Emb") is, None without one.

    Raises:
        InputError: fewer than two tasks have scores of both embedding models.
    """
    scores = {(row["model"], row["seed"], row["task"]): row["score"] for row in rows if row["score"] is not None}
    tasks = sorted({task for model, _, task in scores if model == BASE} - set(left_out))
    tasks = [
        task for task in tasks if all((name, seed, task) in scores for name in (BASE, REASONING) for seed in seeds)
    ]
    if len(tasks) < 2:
        raise InputError(
            f"only {len(tasks)} benchmark tasks have scores of both embedding models: see the failed tasks"
        )
    d_TS = _differences(scores, REASONING, tasks, seeds)
    positive = _positive_control(scores, tasks, seeds, margin, control)
    return {
        **_interval(d_TS),
        "margin": margin,
        "word": verdict(d_TS, margin, positive_control=positive["differences"] if positive else None),
        "tasks": tasks,
        "left_out": sorted(left_out),
        "seeds": list(seeds),
        "differences": d_TS.tolist(),
        "sign_flip_p": sign_flip_p(d_TS),
        "power": _power(d_TS, margin),
        "positive_control": positive,
        "aa": _same_backbone(scores, tasks, seeds, margin),
    }


def _differences(scores: Scores, model: str, tasks: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
    """(tasks, seeds) of `model` minus base-Emb in points, paired by seed."""
    return np.array([[100 * (scores[model, s, t] - scores[BASE, s, t]) for s in seeds] for t in tasks], np.float64)


def _interval(d_TS: np.ndarray) -> dict[str, Any]:
    if d_TS.shape[1] == 1:
        estimate, low, high, df = one_seed_interval(d_TS[:, 0])
        method = "t interval over tasks (one seed: noise between seeds is not in it)"
    else:
        estimate, low, high, df = crossed_interval(d_TS)
        method = "crossed task x seed random-effects interval (Satterthwaite)"
    return {"estimate": estimate, "interval90": [low, high], "df": df, "method": method}


def _power(d_TS: np.ndarray, margin: float) -> dict[str, Any] | None:
    """How often a study of this size, with spreads as found here, would call two equal models equivalent."""
    tasks, seeds = d_TS.shape
    if seeds == 1:
        return None
    spread = components(d_TS)
    needed_tasks, needed_seeds = needed_sizes(d_TS, margin)
    share = power(tasks, seeds, margin, sd_task=spread.sd_task, sd_seed=spread.sd_seed, sd_run=spread.sd_run)
    sizes = {"tasks": tasks, "seeds": seeds, "margin": margin}
    return {"power": share, **sizes, "needed_tasks": needed_tasks, "needed_seeds": needed_seeds}


def _positive_control(
    scores: Scores, tasks: Sequence[str], seeds: Sequence[int], margin: float, what: str | None
) -> dict[str, Any] | None:
    """The sibling that is known to be worse, on the tasks of the comparison; None without its scores."""
    tasks = [task for task in tasks if all((CONTROL, seed, task) in scores for seed in seeds)]
    if what is None or len(tasks) < 2:
        return None
    d_TS = _differences(scores, CONTROL, tasks, seeds)
    return {
        "name": CONTROL,
        "what": what,
        **_interval(d_TS),
        "shows": control_shows(d_TS, margin),
        "tasks": tasks,
        "seeds": list(seeds),
        "differences": d_TS.tolist(),
    }


def _same_backbone(scores: Scores, tasks: Sequence[str], seeds: Sequence[int], margin: float) -> dict[str, Any] | None:
    """Base against base: embedding models of one backbone that differ by their seed only, every pair of seeds."""
    if len(seeds) < 2:
        return None
    pairs, holds = [], True
    for first, second in combinations(seeds, 2):
        d_T = np.array([100 * (scores[BASE, second, t] - scores[BASE, first, t]) for t in tasks])
        estimate, low, high, _ = one_seed_interval(d_T)
        pairs.append({"seeds": [first, second], "estimate": estimate, "interval90": [low, high]})
        holds = holds and abs(estimate) <= margin
    what = "base-Emb minus base-Emb of another seed; t intervals over tasks"
    return {"what": what, "pairs": pairs, "holds": holds}
