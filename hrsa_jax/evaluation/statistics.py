"""When does a null result mean something: intervals, equivalence, power and the words of the verdict.

Shapes: T tasks, S seeds. ``d_TS`` holds reasoning minus base in points (0-100), paired by seed and data order:
``d[t, s] = mean + task_t + seed_s + run_ts`` with all three drawn at random, because the claim is about other
tasks and other seeds than the ones that happened to be run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

FloatArray = NDArray[np.float64]

LEVEL = 0.90  # two one-sided tests at 5% each are one 90% interval
TARGET_POWER = 0.80
_EXACT_SIGN_FLIPS = 16  # up to 2**16 sign patterns are enumerated
_SIGN_FLIP_DRAWS = 20_000
_POWER_DRAWS = 20_000
_LARGEST_PLAN = 1000


def crossed_interval(d_TS: ArrayLike, level: float = LEVEL) -> tuple[float, float, float, float]:
    """Interval of the mean over tasks and seeds, both random (two-way mean squares, Satterthwaite df).

    Args:
        d_TS: differences (T, S) in points, T >= 2 and S >= 2, finite.
        level: coverage of the interval, e.g. 0.90 for equivalence at 5%.

    Returns:
        (estimate, low, high, df).

    Raises:
        ValueError: fewer than two tasks or seeds, or a value that is not finite (a missing task is an error).
    """
    d_TS = _table(d_TS)
    tasks, seeds = d_TS.shape
    if seeds < 2:
        raise ValueError("d_TS has one seed; a crossed interval needs two, use one_seed_interval")
    mean_squares = _mean_squares(d_TS)
    variance, df = _variance_of_mean(*(np.asarray(m) for m in mean_squares), tasks=tasks, seeds=seeds)
    estimate = float(d_TS.mean())
    half = _half_width(float(variance), float(df), level)
    return estimate, estimate - half, estimate + half, float(df)


def one_seed_interval(d_T: ArrayLike, level: float = LEVEL) -> tuple[float, float, float, float]:
    """Task-only t interval (estimate, low, high, df) for one seed: it cannot see what another seed would do.

    Args:
        d_T: differences (T,) in points, T >= 2, finite.
    """
    d_T = np.asarray(d_T, dtype=np.float64)
    if d_T.ndim != 1:
        raise ValueError(f"d_T must have one dimension (tasks), got shape {d_T.shape}")
    d_T = _table(d_T[:, None])[:, 0]
    df = float(len(d_T) - 1)
    half = _half_width(float(d_T.var(ddof=1)) / len(d_T), df, level)
    estimate = float(d_T.mean())
    return estimate, estimate - half, estimate + half, df


def bootstrap_interval(
    d_TS: ArrayLike, level: float = LEVEL, *, draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Percentile interval (estimate, low, high) from resampling tasks and seeds independently.

    Shown beside the crossed interval, never instead of it: with three seeds it covers a little too seldom.
    """
    d_TS = _table(d_TS)
    tasks, seeds = d_TS.shape
    rng = np.random.default_rng(seed)
    weights_GT = rng.multinomial(tasks, np.full(tasks, 1 / tasks), size=draws) / tasks
    weights_GS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    means_G = np.einsum("gt,ts,gs->g", weights_GT, d_TS, weights_GS, optimize=True)
    low, high = np.quantile(means_G, [(1 - level) / 2, (1 + level) / 2])
    return float(d_TS.mean()), float(low), float(high)


def sign_flip_p(d_TS: ArrayLike, *, seed: int = 0) -> float:
    """Two-sided permutation p of "no difference": each task's mean over seeds flips its sign.

    Exact up to 16 tasks, 20,000 seeded draws beyond. It treats tasks as independent, so noise that all tasks share
    through a seed makes it reject too often (20% at 131 tasks instead of 5%): it is a companion, not the claim.

    Args:
        d_TS: (T, S), or (T,) for one seed.
    """
    d_TS = np.asarray(d_TS, dtype=np.float64)
    d_T = _table(d_TS[:, None] if d_TS.ndim == 1 else d_TS).mean(axis=1)
    return float(sign_flip_ps(d_T[None], seed=seed)[0])


def sign_flip_ps(d_NT: ArrayLike, *, seed: int = 0) -> FloatArray:
    """sign_flip_p of N tables at once (N,), from their means over seeds (N, T); all see the same signs."""
    d_NT = np.asarray(d_NT, dtype=np.float64)
    tasks = d_NT.shape[1]
    exact = tasks <= _EXACT_SIGN_FLIPS
    if exact:
        signs_GT = 1 - 2 * (np.arange(2**tasks)[:, None] >> np.arange(tasks) & 1)
    else:
        signs_GT = np.random.default_rng(seed).integers(0, 2, size=(_SIGN_FLIP_DRAWS, tasks), dtype=np.int8) * 2 - 1
    signs_GT = signs_GT.astype(np.float64)
    p_values = []
    for start in range(0, len(d_NT), 100):
        block_NT = d_NT[start : start + 100]
        least_N = np.abs(block_NT.sum(axis=1)) - 1e-12 * np.abs(block_NT).sum(axis=1)
        p_values.append((np.abs(signs_GT @ block_NT.T) >= least_N).mean(axis=0))
    p_N = np.concatenate(p_values)
    return p_N if exact else (1 + p_N * _SIGN_FLIP_DRAWS) / (1 + _SIGN_FLIP_DRAWS)


def holm(p_values: ArrayLike) -> FloatArray:
    """Holm's step-down adjustment of p values (n,) over model pairs x benchmarks; same order, at most 1."""
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not np.all((p >= 0) & (p <= 1)):
        raise ValueError("p_values must be one row of numbers between 0 and 1")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


@lru_cache(maxsize=4096)
def power(tasks: int, seeds: int, margin: float, *, sd_task: float, sd_seed: float, sd_run: float) -> float:
    """Probability that two truly equal models are called equivalent within +/- margin (points).

    The mean and the three mean squares of a balanced crossed design are independent (normal and chi-squared), so
    they are drawn directly: 20,000 fixed-seed draws, standard error at most 0.4%.
    """
    if tasks < 2 or seeds < 2:
        raise ValueError(f"power needs two tasks and two seeds at least, got {tasks} tasks and {seeds} seeds")
    if margin <= 0 or min(sd_task, sd_seed, sd_run) < 0:
        raise ValueError("margin must be positive, and the standard deviations not negative")
    rng = np.random.default_rng(0)
    run = sd_run**2
    expected = (run + seeds * sd_task**2, run + tasks * sd_seed**2, run)
    degrees = (tasks - 1, seeds - 1, (tasks - 1) * (seeds - 1))
    mean = rng.standard_normal(_POWER_DRAWS) * np.sqrt((expected[0] + expected[1] - run) / (tasks * seeds))
    squares = [e * rng.chisquare(k, _POWER_DRAWS) / k for e, k in zip(expected, degrees, strict=True)]
    variance, df = _variance_of_mean(*squares, tasks=tasks, seeds=seeds)
    half = stats.t.ppf((1 + LEVEL) / 2, df) * np.sqrt(variance)
    return float(np.mean(np.abs(mean) + half <= margin))


@dataclass(frozen=True)
class Components:
    """Standard deviations of d in points: between tasks, between seeds, and of one run."""

    sd_task: float
    sd_seed: float
    sd_run: float


def components(d_TS: ArrayLike) -> Components:
    """Variance components of a crossed table by the method of moments, negative ones set to zero.

    With one seed all spread is counted as task spread: it cannot be told apart from the run's.
    """
    d_TS = _table(d_TS)
    tasks, seeds = d_TS.shape
    if seeds == 1:
        return Components(float(d_TS.std(ddof=1)), 0.0, 0.0)
    task, seed, run = _mean_squares(d_TS)
    return Components(
        float(np.sqrt(max(task - run, 0.0) / seeds)),
        float(np.sqrt(max(seed - run, 0.0) / tasks)),
        float(np.sqrt(run)),
    )


def needed_sizes(d_TS: ArrayLike, margin: float, *, target: float = TARGET_POWER) -> tuple[int, int]:
    """About how many tasks (at these seeds) or seeds (at these tasks) an equivalence claim needs.

    Returns:
        (tasks, seeds), each the smallest with the target power at a true difference of zero; above 1,000 the
        search stops and 1,001 is returned.

    Raises:
        ValueError: for one seed, which does not show how far seeds differ.
    """
    d_TS = _table(d_TS)
    tasks, seeds = d_TS.shape
    if seeds < 2:
        raise ValueError("what a claim needs cannot be said from one seed: it does not show how far seeds differ")
    spread = components(d_TS)

    def enough_tasks(n: int) -> bool:
        return _power_of(n, seeds, margin, spread) >= target

    def enough_seeds(n: int) -> bool:
        return _power_of(tasks, n, margin, spread) >= target

    return _smallest(enough_tasks), _smallest(enough_seeds)


def verdict(d_TS: ArrayLike, margin: float, *, positive_control: ArrayLike | None = None) -> str:
    """The preregistered words for a table of differences (T, S) in points.

    90% interval inside +/- margin: "no advantage (equivalent within m)", even if it excludes 0; else entirely above
    or below 0: "advantage" or "disadvantage"; else "inconclusive (needs about N tasks or S seeds)". One seed is
    always "inconclusive": it does not show how far seeds differ, so what it would take cannot be said. Without a
    positive control (T', S') whose own interval lies beyond the margin, "; sensitivity not shown" is appended: the
    study might have been unable to see any difference.
    """
    if margin <= 0:
        raise ValueError(f"margin must be positive, got {margin}")
    d_TS = _table(d_TS)
    if d_TS.shape[1] == 1:
        word = "inconclusive"
    else:
        _, low, high, _ = crossed_interval(d_TS)
        if -margin <= low and high <= margin:
            word = f"no advantage (equivalent within {margin})"
        elif low > 0:
            word = "advantage"
        elif high < 0:
            word = "disadvantage"
        else:
            word = _inconclusive(d_TS, margin)
    shown = positive_control is not None and control_shows(positive_control, margin)
    return word if shown else word + "; sensitivity not shown"


def control_shows(control_TS: ArrayLike, margin: float) -> bool:
    """Whether a positive control's 90% crossed interval lies entirely beyond +/- margin (one seed never does)."""
    control_TS = _table(control_TS)
    if control_TS.shape[1] == 1:
        return False
    _, low, high, _ = crossed_interval(control_TS)
    return low > margin or high < -margin


@dataclass(frozen=True)
class MarginCheck:
    """A/A runs against the preregistered margin: equal models must be called equal by it."""

    estimate: float
    low: float
    high: float
    holds: bool


def check_margin(aa_TS: ArrayLike, margin: float) -> MarginCheck:
    """Base against base with disjoint seeds (T, S): holds when the 90% interval lies inside +/- margin."""
    estimate, low, high, _ = crossed_interval(aa_TS)
    return MarginCheck(estimate, low, high, -margin <= low and high <= margin)


def power_table(
    tasks: Sequence[int], seeds: Sequence[int], margin: float, spread: Components
) -> list[tuple[int, int, float]]:
    """Rows (tasks, seeds, power) for the report: what a study of that size could have claimed."""
    return [(t, s, _power_of(t, s, margin, spread)) for t in tasks for s in seeds]


def _inconclusive(d_TS: FloatArray, margin: float) -> str:
    tasks, seeds = needed_sizes(d_TS, margin)

    def words(n: int) -> str:
        return str(n) if n <= _LARGEST_PLAN else f"more than {_LARGEST_PLAN}"

    about = "about " if tasks <= _LARGEST_PLAN else ""
    return f"inconclusive (needs {about}{words(tasks)} tasks or {words(seeds)} seeds)"


def _power_of(tasks: int, seeds: int, margin: float, spread: Components) -> float:
    return power(tasks, seeds, margin, sd_task=spread.sd_task, sd_seed=spread.sd_seed, sd_run=spread.sd_run)


def _smallest(enough: Callable[[int], bool]) -> int:
    """Smallest n in 2..1000 with enough(n), by bisection (power grows with n); 1001 when there is none."""
    low, high = 2, _LARGEST_PLAN + 1
    while low < high:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _table(d_TS: ArrayLike) -> FloatArray:
    d_TS = np.asarray(d_TS, dtype=np.float64)
    if d_TS.ndim != 2 or d_TS.shape[0] < 2 or d_TS.shape[1] < 1:
        raise ValueError(f"d_TS must be (tasks >= 2, seeds >= 1), got shape {d_TS.shape}")
    if not np.all(np.isfinite(d_TS)):
        task, seed = np.argwhere(~np.isfinite(d_TS))[0]
        raise ValueError(f"d_TS[{task}, {seed}] is not finite: a missing score cannot be averaged away")
    return d_TS


def _mean_squares(d_TS: FloatArray) -> tuple[float, float, float]:
    """Mean squares (task, seed, residual) of a two-way table without replication."""
    tasks, seeds = d_TS.shape
    mean = d_TS.mean()
    task_T, seed_S = d_TS.mean(axis=1) - mean, d_TS.mean(axis=0) - mean
    residual_TS = d_TS - mean - task_T[:, None] - seed_S
    return (
        float(seeds * np.sum(task_T**2) / (tasks - 1)),
        float(tasks * np.sum(seed_S**2) / (seeds - 1)),
        float(np.sum(residual_TS**2) / ((tasks - 1) * (seeds - 1))),
    )


def _variance_of_mean(
    task: FloatArray, seed: FloatArray, run: FloatArray, *, tasks: int, seeds: int
) -> tuple[FloatArray, FloatArray]:
    """Variance of the grand mean and its Satterthwaite df from mean squares (arrays of one shape).

    E[task + seed - run] / (T S) is the variance; the sum may come out below the larger of the two (even negative),
    which no true variance can: then that one alone is used, with its own degrees of freedom.
    """
    df_task, df_seed, df_run = tasks - 1, seeds - 1, (tasks - 1) * (seeds - 1)
    combined = task + seed - run
    larger = np.maximum(task, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        df = combined**2 / (task**2 / df_task + seed**2 / df_seed + run**2 / df_run)
    alone = combined <= larger
    df = np.where(alone, np.where(task >= seed, df_task, df_seed), np.maximum(df, 1.0))
    variance = np.where(alone, larger, combined) / (tasks * seeds)
    return variance, df


def _half_width(variance: float, df: float, level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    return float(stats.t.ppf((1 + level) / 2, df) * np.sqrt(variance))
