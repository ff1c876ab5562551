"""Intervals that cover, words that follow the rule, and a permutation test whose weakness is on record."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from hrsa_jax.evaluation.simulation import PLANNED as SPREAD
from hrsa_jax.evaluation.simulation import coverage_and_size, draw_tables, page, sign_flip_alarms
from hrsa_jax.evaluation.statistics import (
    Components,
    bootstrap_interval,
    check_margin,
    components,
    control_shows,
    crossed_interval,
    holm,
    needed_sizes,
    one_seed_interval,
    power,
    power_table,
    sign_flip_p,
    verdict,
)

STRONG_CONTROL_TS = np.full((12, 3), -6.0) + np.random.default_rng(9).normal(0, 0.3, (12, 3))


def centred(tasks, seeds, mean, sd, seed=0):
    """A table with exactly this mean and spread `sd` between its cells."""
    d_TS = np.random.default_rng(seed).normal(0, sd, (tasks, seeds))
    return d_TS - d_TS.mean() + mean


@pytest.mark.parametrize(("tasks", "seeds"), [(12, 3), (41, 3)])
def test_crossed_interval_covers_and_equivalence_keeps_its_size(tasks, seeds):
    covered, called_equal = coverage_and_size(2000, tasks, seeds, SPREAD)
    assert 0.87 <= covered <= 0.95
    assert called_equal <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.slow
@pytest.mark.parametrize(("tasks", "seeds"), [(8, 3), (12, 3), (41, 3), (131, 3)])
def test_crossed_interval_in_a_large_simulation(tasks, seeds):
    covered, called_equal = coverage_and_size(20_000, tasks, seeds, SPREAD)
    assert 0.87 <= covered <= 0.95
    noise = 3 * np.sqrt(0.05 * 0.95 / 20_000)  # at 41 tasks the share is 5.0% (5.009% of 500,000 tables)
    assert called_equal <= (0.05 + noise if tasks <= 41 else 0.065)  # many tasks: df near 3, a little liberal


def test_crossed_interval_against_mean_squares_by_hand():
    d_TS = np.array([[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]])
    task = 2 * np.var([1.5, 4.5, 3.0], ddof=1)
    seed = 3 * np.var([3.0, 3.0], ddof=1)
    residual_TS = d_TS - d_TS.mean(1, keepdims=True) - d_TS.mean(0) + d_TS.mean()
    run = (residual_TS**2).sum() / 2
    assert task + seed - run < max(task, seed)  # so the larger one stands alone
    estimate, low, high, df = crossed_interval(d_TS)
    half = stats.t.ppf(0.95, 2) * np.sqrt(task / 6)
    assert df == 2
    np.testing.assert_allclose((estimate, low, high), (3.0, 3.0 - half, 3.0 + half))


def test_crossed_interval_uses_satterthwaite_when_both_spreads_show():
    d_TS = draw_tables(1, 12, 3, Components(2.0, 2.0, 0.1), seed=1)[0]
    task = 3 * d_TS.mean(1).var(ddof=1)
    seed = 12 * d_TS.mean(0).var(ddof=1)
    residual_TS = d_TS - d_TS.mean(1, keepdims=True) - d_TS.mean(0) + d_TS.mean()
    run = (residual_TS**2).sum() / 22
    variance = task + seed - run
    _, low, high, df = crossed_interval(d_TS)
    assert df == pytest.approx(variance**2 / (task**2 / 11 + seed**2 / 2 + run**2 / 22))
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.95, df) * np.sqrt(variance / 36))


def test_constant_table_has_an_interval_of_width_zero():
    assert crossed_interval(np.full((4, 3), 0.5))[:3] == (0.5, 0.5, 0.5)


def test_wider_level_gives_a_wider_interval_and_a_bad_level_is_refused():
    d_TS = centred(8, 3, 0.0, 1.0)
    assert crossed_interval(d_TS, 0.95)[2] > crossed_interval(d_TS, 0.90)[2]
    with pytest.raises(ValueError, match="level"):
        crossed_interval(d_TS, 90)


def test_one_seed_interval_is_the_t_interval():
    d_T = np.array([0.5, -1.0, 2.0, 0.1])
    estimate, low, high, df = one_seed_interval(d_T)
    expected = stats.t.interval(0.90, 3, loc=d_T.mean(), scale=stats.sem(d_T))
    np.testing.assert_allclose((estimate, low, high, df), (d_T.mean(), *expected, 3))


@pytest.mark.parametrize("shape", [(1, 3), (12,), (2, 2, 2)])
def test_tables_of_the_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match="d_TS must be"):
        crossed_interval(np.zeros(shape))


def test_one_seed_is_refused_with_the_function_to_use():
    with pytest.raises(ValueError, match="one_seed_interval"):
        crossed_interval(np.zeros((12, 1)))


def test_a_missing_score_is_never_averaged_away():
    d_TS = np.zeros((4, 3))
    d_TS[2, 1] = np.nan
    for function in (crossed_interval, sign_flip_p, lambda d: verdict(d, 1.0), bootstrap_interval):
        with pytest.raises(ValueError, match=r"d_TS\[2, 1\] is not finite"):
            function(d_TS)


# the verdict's words


def test_verdict_equivalent_even_when_the_interval_excludes_zero():
    d_TS = centred(12, 3, 0.4, 0.3)
    assert crossed_interval(d_TS)[1] > 0
    word = verdict(d_TS, 1.0, positive_control=STRONG_CONTROL_TS)
    assert word == "no advantage (equivalent within 1.0)"


@pytest.mark.parametrize(("mean", "word"), [(3.0, "advantage"), (-3.0, "disadvantage")])
def test_verdict_for_a_clear_difference(mean, word):
    assert verdict(centred(12, 3, mean, 1.0), 1.0, positive_control=STRONG_CONTROL_TS) == word


def test_verdict_inconclusive_names_what_would_be_needed():
    tasks_T, seeds_S = np.linspace(-2.2, 2.2, 8), np.array([-0.1, 0.0, 0.1])
    d_TS = tasks_T[:, None] + seeds_S + centred(8, 3, 0.2, 0.2)
    tasks, seeds = needed_sizes(d_TS, 1.0)
    assert 8 < tasks < 1000
    assert seeds == 1001
    word = verdict(d_TS, 1.0, positive_control=STRONG_CONTROL_TS)
    assert word == f"inconclusive (needs about {tasks} tasks or more than 1000 seeds)"


def test_more_seeds_help_when_the_runs_are_noisy():
    d_TS = draw_tables(1, 12, 3, Components(0.1, 0.1, 4.0), seed=3)[0]
    tasks, seeds = needed_sizes(d_TS, 1.0)
    assert 3 < seeds < 100
    needed = "more than 1000" if tasks > 1000 else f"about {tasks}"
    assert verdict(d_TS, 1.0) == f"inconclusive (needs {needed} tasks or {seeds} seeds); sensitivity not shown"


def test_verdict_of_one_seed_is_always_inconclusive():
    for mean in (0.0, 50.0):
        word = verdict(centred(12, 1, mean, 0.01), 1.0, positive_control=STRONG_CONTROL_TS)
        assert word == "inconclusive"  # what it would take cannot be said from one seed
    with pytest.raises(ValueError, match="cannot be said from one seed"):
        needed_sizes(centred(12, 1, 0.0, 0.01), 1.0)


@pytest.mark.parametrize("control_TS", [None, centred(12, 3, 0.5, 0.3), centred(12, 3, 1.1, 2.0)])
def test_verdict_without_a_strong_control_says_so(control_TS):
    word = verdict(centred(12, 3, 0.0, 0.3), 1.0, positive_control=control_TS)
    assert word == "no advantage (equivalent within 1.0); sensitivity not shown"


def test_control_shows_in_either_direction_but_never_from_one_seed():
    assert control_shows(STRONG_CONTROL_TS, 1.0)
    assert control_shows(-STRONG_CONTROL_TS, 1.0)
    assert not control_shows(STRONG_CONTROL_TS[:, :1], 1.0)


def test_margin_must_be_positive():
    with pytest.raises(ValueError, match="margin"):
        verdict(np.zeros((3, 3)), 0.0)


def test_margin_check_from_base_against_base():
    assert check_margin(centred(12, 3, 0.1, 0.5), 1.0).holds
    assert not check_margin(centred(4, 2, 0.1, 4.0), 1.0).holds


# permutation, bootstrap, Holm, power


def test_sign_flip_is_exact_on_few_tasks():
    assert sign_flip_p(np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(2 / 16)
    assert sign_flip_p(np.array([[1.0], [-1.0]])) == 1.0
    assert sign_flip_p(np.zeros((12, 3))) == 1.0


def test_sign_flip_draws_agree_with_the_exact_value():
    d_T = np.random.default_rng(0).normal(0.3, 1.0, 16)
    exact = sign_flip_p(d_T)
    drawn = sign_flip_p(np.concatenate([d_T, np.zeros(10)]))  # zeros change no sum, but force the drawn path
    assert drawn == pytest.approx(exact, abs=0.015)


def test_sign_flip_false_alarms_without_and_with_shared_seed_noise():
    n = 400
    bound = 0.05 + 2 * np.sqrt(0.05 * 0.95 / n)
    assert sign_flip_alarms(n, 10, 3, Components(0.8, 0.0, 0.85)) <= bound
    assert sign_flip_alarms(n, 10, 3, Components(0.2, 0.8, 0.3)) > 0.3  # the inflation the crossed interval avoids


@pytest.mark.slow
def test_sign_flip_inflation_at_the_size_of_a_large_benchmark():
    assert sign_flip_alarms(1000, 131, 3, Components(0.8, 0.0, 0.85)) <= 0.065
    assert 0.12 <= sign_flip_alarms(1000, 131, 3, SPREAD) <= 0.30


def test_bootstrap_is_seeded_and_centred():
    d_TS = centred(12, 3, 0.7, 1.0)
    estimate, low, high = bootstrap_interval(d_TS, seed=4)
    assert (estimate, low, high) == bootstrap_interval(d_TS, seed=4)
    assert low < estimate < high
    assert estimate == pytest.approx(0.7)


def test_bootstrap_sees_seed_spread():
    by_seed_TS = np.tile([-3.0, 0.0, 3.0], (50, 1))
    _, low, high = bootstrap_interval(by_seed_TS)
    assert high - low > 3


def test_holm_against_values_worked_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1.0, 1.0])
    with pytest.raises(ValueError, match="p_values"):
        holm([1.2])


@pytest.mark.parametrize(("tasks", "expected"), [(8, 0.54), (12, 0.79), (41, 0.98)])
def test_power_of_the_planned_sizes(tasks, expected):
    assert power(tasks, 3, 1.0, sd_task=0.8, sd_seed=0.21, sd_run=0.85) == pytest.approx(expected, abs=0.02)


def test_power_agrees_with_simulated_tables():
    drawn = [crossed_interval(d)[1:3] for d in draw_tables(1000, 12, 3, SPREAD, seed=11)]
    share = np.mean([low >= -1 and high <= 1 for low, high in drawn])
    [(_, _, planned)] = power_table([12], [3], 1.0, SPREAD)
    assert share == pytest.approx(planned, abs=0.05)


def test_power_refuses_what_it_cannot_plan():
    with pytest.raises(ValueError, match="two seeds"):
        power(12, 1, 1.0, sd_task=1, sd_seed=1, sd_run=1)
    with pytest.raises(ValueError, match="margin"):
        power(12, 3, 0.0, sd_task=1, sd_seed=1, sd_run=1)


def test_components_are_recovered_on_average():
    found = [components(d) for d in draw_tables(300, 40, 6, SPREAD, seed=2)]
    assert np.sqrt(np.mean([c.sd_task**2 for c in found])) == pytest.approx(0.8, rel=0.1)
    assert np.sqrt(np.mean([c.sd_seed**2 for c in found])) == pytest.approx(0.21, rel=0.25)
    assert np.mean([c.sd_run for c in found]) == pytest.approx(0.85, rel=0.05)


def test_no_number_of_seeds_helps_when_the_tasks_disagree():
    d_TS = np.repeat(np.linspace(-20, 20, 6)[:, None], 3, axis=1) + centred(6, 3, 0.0, 0.1)
    tasks, seeds = needed_sizes(d_TS, 0.5)
    assert seeds == 1001
    assert "or more than 1000 seeds" in verdict(d_TS, 0.5)
    assert tasks > 100


def test_the_page_tabulates_coverage_size_false_alarms_and_power():
    text = page(draws=40, permutations=8)
    assert text.count("| planned (task 0.8, seed 0.21, run 0.85) | ") == 4 + 3
    assert "| 12 | 3 | 80% |" in text or "| 12 | 3 | 79% |" in text
    kept = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text(encoding="utf-8")
    assert [line for line in kept.splitlines() if line.startswith("#")] == [
        line for line in text.splitlines() if line.startswith("#")
    ]
    assert text.split("## Power")[1] == kept.split("## Power")[1]  # power has fixed draws
