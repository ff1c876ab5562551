"""How the instruments of evaluation/statistics.py behave on simulated tables; writes docs/statistics.md.

    python -m hrsa_jax.evaluation.simulation docs/statistics.md

Tables follow the model of the claim: d[t, s] = mean + task_t + seed_s + run_ts, all normal. About three minutes on one
core.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hrsa_jax.evaluation.statistics import (
    Components,
    bootstrap_interval,
    crossed_interval,
    one_seed_interval,
    power_table,
    sign_flip_ps,
)

FloatArray = NDArray[np.float64]

PLANNED = Components(sd_task=0.8, sd_seed=0.21, sd_run=0.85)
_SPREADS = {
    "planned (task 0.8, seed 0.21, run 0.85)": PLANNED,
    "no seed noise (0.8, 0, 0.85)": Components(0.8, 0.0, 0.85),
    "strong seed noise (0.8, 0.8, 0.85)": Components(0.8, 0.8, 0.85),
    "seed noise only (0.3, 0.5, 0.3)": Components(0.3, 0.5, 0.3),
}
_SIZES = ((8, 3), (12, 3), (41, 3), (131, 3))
_MARGIN = 1.0


def draw_tables(n: int, tasks: int, seeds: int, spread: Components, *, mean: float = 0.0, seed: int = 0) -> FloatArray:
    """n tables of differences (n, T, S) in points with this mean and these standard deviations."""
    rng = np.random.default_rng(seed)
    return np.asarray(
        mean
        + spread.sd_task * rng.standard_normal((n, tasks, 1))
        + spread.sd_seed * rng.standard_normal((n, 1, seeds))
        + spread.sd_run * rng.standard_normal((n, tasks, seeds))
    )


def coverage_and_size(
    n: int, tasks: int, seeds: int, spread: Components, margin: float = _MARGIN
) -> tuple[float, float]:
    """Of the crossed 90% interval: how often it holds the truth, and how often a true difference of exactly the margin
    is called "no advantage"."""
    low, high = np.array([crossed_interval(d_TS)[1:3] for d_TS in draw_tables(n, tasks, seeds, spread, seed=3)]).T
    called_equal = (low + margin >= -margin) & (high + margin <= margin)
    return float(np.mean((low <= 0) & (high >= 0))), float(np.mean(called_equal))


def sign_flip_alarms(n: int, tasks: int, seeds: int, spread: Components, *, level: float = 0.05) -> float:
    """Share of tables without any true difference that the sign-flip permutation calls different."""
    tables = draw_tables(n, tasks, seeds, spread, seed=5)
    return float(np.mean(sign_flip_ps(tables.mean(axis=2)) <= level))


def _other_coverages(n: int, tasks: int, seeds: int, spread: Components) -> tuple[float, float]:
    """Coverage of the task x seed bootstrap, and of the task-only t interval over one seed."""
    tables = draw_tables(n, tasks, seeds, spread, seed=7)
    hierarchical = np.array([bootstrap_interval(d_TS, draws=500)[1:] for d_TS in tables])
    one_seed = np.array([one_seed_interval(d_TS[:, 0])[1:3] for d_TS in tables])
    return _covers(hierarchical), _covers(one_seed)


def _covers(intervals: FloatArray) -> float:
    return float(np.mean((intervals[:, 0] <= 0) & (intervals[:, 1] >= 0)))


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def page(draws: int = 10_000, permutations: int = 600) -> str:
    """The page docs/statistics.md: `draws` tables for intervals, 4 x `permutations` for sign flips."""
    lines = [
        "# What the statistics can and cannot say",
        "",
        "Written by `python -m hrsa_jax.evaluation.simulation docs/statistics.md`. Simulated tables of differences:",
        f"points, tasks x seeds, all spreads normal (task, seed, run); {draws:,} tables a row here (standard error",
        f"of a share near 5%: {100 * np.sqrt(0.0475 / draws):.1f}%).",
        "",
        "## The claim: crossed 90% interval and equivalence",
        "",
        'The interval should hold the truth in 90%. "No advantage" should come out in at most 5% when the true',
        f"difference equals the margin ({_MARGIN} points). Where most noise is shared by all tasks through a seed,",
        "three seeds are few, and both shares are about a point worse.",
        "",
        _row(["spread", "tasks x seeds", "interval holds the truth", '"no advantage" at the margin']),
        _row(["---"] * 4),
    ]
    for name, spread in _SPREADS.items():
        for tasks, seeds in _SIZES:
            covered, equal = coverage_and_size(draws, tasks, seeds, spread)
            lines.append(_row([name, f"{tasks} x {seeds}", f"{covered:.1%}", f"{equal:.1%}"]))
    lines += [
        "",
        "## Companions",
        "",
        "Sign-flip permutation over tasks at 5%: it takes tasks for independent, so shared seed noise makes it reject",
        "too often. Task x seed bootstrap: percentile interval. One seed: the t interval over tasks cannot see what",
        'another seed would do, which is why the word is then always "inconclusive". '
        f"{4 * permutations:,} tables for the",
        f"permutation (standard error near 5%: {100 * np.sqrt(0.0475 / 4 / permutations):.1f}%), {permutations:,} for "
        "the others.",
        "",
        _row(
            [
                "spread",
                "tasks x seeds",
                "sign-flip false alarms",
                "90% bootstrap holds the truth",
                "90% one-seed t does",
            ]
        ),
        _row(["---"] * 5),
    ]
    for name, spread in _SPREADS.items():
        for tasks, seeds in _SIZES[1:]:
            alarms = sign_flip_alarms(4 * permutations, tasks, seeds, spread)
            bootstrap, one_seed = _other_coverages(permutations, tasks, seeds, spread)
            lines.append(_row([name, f"{tasks} x {seeds}", f"{alarms:.1%}", f"{bootstrap:.1%}", f"{one_seed:.1%}"]))
    lines += [
        "",
        "## Power",
        "",
        'Probability that two truly equal models are called "no advantage", planned spread.',
        "",
        _row(["tasks", "seeds", f"margin {_MARGIN}", f"margin {_MARGIN / 2}"]),
        _row(["---"] * 4),
    ]
    sizes = [8, 12, 41, 131], [3, 5, 10]
    for wide, narrow in zip(
        power_table(*sizes, _MARGIN, PLANNED), power_table(*sizes, _MARGIN / 2, PLANNED), strict=True
    ):
        lines.append(_row([wide[0], wide[1], f"{wide[2]:.0%}", f"{narrow[2]:.0%}"]))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
