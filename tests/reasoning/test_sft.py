"""Tuning on solutions: only solutions are scored, packing changes nothing, measures are what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.generate import Samples
from hrsa_jax.models.lora import LoRAConfig, add_lora, split_trainable
from hrsa_jax.reasoning import accuracy, sft, tasks
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.loop import OptimConfig, init_state, make_optimizer, make_step

SETTINGS = sft.SFTConfig(rows=2, row_length=96, dtype="float32")


def _problems(n: int) -> list[tasks.Problem]:
    """Short sums; solutions of different lengths, so that rows pack unevenly."""
    made = []
    for i in range(n):
        a, b = i % 10, (3 * i) % 7
        solution = f"{a} + {b} = {a + b}\n" * (1 + i % 3) + f"#### {a + b}"
        made.append(tasks.Problem(f"{a} + {b} =", solution, str(a + b), "chain_sum", {"answer": str(a + b)}))
    return made


@jax.jit
def _all_logps(decoder: Decoder, tokens_T: jax.Array, used: jax.Array) -> jax.Array:
    T = tokens_T.shape[0]
    segments_BT = (jnp.arange(T) < used).astype(jnp.int32)[None]
    last_BTD = decoder(tokens_T[None], segments_BT, jnp.arange(T)[None], attention="causal").last_BTD
    return jax.nn.log_softmax(decoder.logits(last_BTD))[0]


def _nll(decoder, tokenizer, problem) -> tuple[float, int]:
    """Loss of one problem alone in its row, from the definition."""
    ids, start = sft.encode_problem(tokenizer, problem, "question")
    padded = np.zeros(128, np.int32)
    padded[: len(ids)] = ids
    logps_TV = np.asarray(_all_logps(decoder, padded, len(ids)))
    return -sum(logps_TV[t - 1, ids[t]] for t in range(start, len(ids))), len(ids) - start


def test_solutions_start_after_the_prompt_and_end_the_text(tokenizer):
    problem = _problems(3)[2]
    ids, start = sft.encode_problem(tokenizer, problem, "question")
    assert ids[0] == 0
    assert tokenizer.decode(ids[1:start]) == tasks.prompt(problem)
    assert tokenizer.decode(ids[start:-1]) == problem.solution
    assert ids[-1] == 1


def test_packed_loss_equals_each_problem_alone(decoder, tokenizer):
    problems = _problems(11)
    expected = [_nll(decoder, tokenizer, problem) for problem in problems]
    loss = sft.solution_loss(decoder, tokenizer, problems, dtype=jnp.float32, rows=2, row_length=192)
    np.testing.assert_allclose(loss.nll_N, [nll for nll, _ in expected], rtol=1e-5)
    assert loss.tokens_N.tolist() == [tokens for _, tokens in expected]
    total, tokens = map(sum, zip(*expected, strict=True))
    assert loss.mean == pytest.approx(total / tokens, rel=1e-5)


def test_training_loss_and_gradient_equal_the_unpacked_ones(decoder, tokenizer):
    problems = _problems(4)
    config = dataclasses.replace(SETTINGS, row_length=128)
    batch_at, facts = sft.sft_batches(problems, tokenizer, config)
    assert facts["rows"] == 2
    graphdef, trainable, frozen = split_trainable(decoder, lora=False)
    packed = jax.jit(jax.value_and_grad(sft.sft_loss_fn(graphdef, config), has_aux=True))
    (loss, metrics), gradient = packed(trainable, frozen, batch_at(0))

    def alone(trainable):
        model = nnx.merge(graphdef, trainable, frozen)
        total = 0.0
        for problem in problems:
            ids, start = sft.encode_problem(tokenizer, problem, "question")
            padded_T = np.pad(ids, (0, 128 - len(ids)))
            logps_TV = _all_logps(model, padded_T, len(ids))
            total -= jnp.sum(logps_TV[np.arange(start - 1, len(ids) - 1), ids[start:]])
        return total / float(metrics["solution_tokens"])

    expected, expected_gradient = jax.jit(jax.value_and_grad(alone))(trainable)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    for got, want in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5 * float(jnp.abs(want).max()) + 1e-9)


def test_batches_are_pure_functions_and_visit_every_row_once_an_epoch(tokenizer):
    problems = _problems(40)
    batch_at, facts = sft.sft_batches(problems, tokenizer, SETTINGS)
    again, _ = sft.sft_batches(problems, tokenizer, SETTINGS)
    steps = int(facts["steps_per_epoch"])
    assert steps >= 3
    for step in (0, steps + 1):
        for left, right in zip(batch_at(step), again(step), strict=True):
            np.testing.assert_array_equal(left, right)
    first = [batch_at(step) for step in range(steps)]
    rows = {row.tobytes() for batch in first for row in batch.tokens_RT}
    assert len(rows) == 2 * steps
    assert not np.array_equal(first[0].tokens_RT, batch_at(steps).tokens_RT)
    assert {tuple(array.shape for array in batch) for batch in first} == {tuple(a.shape for a in first[0])}
    other, _ = sft.sft_batches(problems, tokenizer, dataclasses.replace(SETTINGS, seed=1))
    assert not np.array_equal(first[0].tokens_RT, other(0).tokens_RT)


def test_long_problems_are_dropped_and_too_few_refused(tokenizer):
    problems = _problems(12)
    long = dataclasses.replace(problems[0], solution="1" * 200)
    _, facts = sft.sft_batches([*problems, long], tokenizer, SETTINGS)
    assert (facts["problems"], facts["dropped"]) == (12, 1)
    with pytest.raises(InputError, match="none of 1 problems fits in 96 tokens"):
        sft.sft_batches([long], tokenizer, SETTINGS)
    with pytest.raises(InputError, match="fewer than one batch of 2 rows"):
        sft.sft_batches(problems[:1], tokenizer, SETTINGS)


def test_tuning_adapters_lowers_the_held_out_loss_and_leaves_the_base_alone(decoder, tokenizer):
    problems = _problems(40)
    held_out = problems[:6]
    batch_at, _ = sft.sft_batches(problems[6:], tokenizer, SETTINGS)
    adapted = add_lora(decoder, LoRAConfig(rank=4, alpha=8.0), seed=0)
    graphdef, trainable, frozen = split_trainable(adapted, lora=True)
    optimizer = make_optimizer(OptimConfig(learning_rate=2e-2, schedule="constant"), 30)
    state = init_state(trainable, frozen, optimizer)
    step = make_step(sft.sft_loss_fn(graphdef, SETTINGS), optimizer)
    before_base = [np.asarray(leaf) for leaf in jax.tree.leaves(frozen)]
    for number in range(30):
        state, metrics = step(state, jax.tree.map(jnp.asarray, batch_at(number)))
        assert bool(metrics["finite"])
    before = sft.solution_loss(decoder, tokenizer, held_out, dtype=jnp.float32, rows=2, row_length=192)
    tuned = nnx.merge(graphdef, state.trainable, state.frozen)
    after = sft.solution_loss(tuned, tokenizer, held_out, dtype=jnp.float32, rows=2, row_length=192)
    change, (low, high) = after.change(before)
    assert change < -0.2
    assert low < change < high < 0
    for leaf, kept in zip(jax.tree.leaves(state.frozen), before_base, strict=True):
        np.testing.assert_array_equal(leaf, kept)


def test_intervals():
    for successes, n in ((0, 5), (3, 32), (32, 32)):
        expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
        assert accuracy.wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-9)
    with pytest.raises(ValueError, match="successes"):
        accuracy.wilson_interval(4, 3)
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        tokens_N = rng.integers(5, 40, 32)
        loss = sft.SolutionLoss(tokens_N * 1.5 + np.sqrt(tokens_N) * rng.normal(size=32), tokens_N)
        covered += loss.interval95[0] <= 1.5 <= loss.interval95[1]
    assert 0.92 < covered / 400 < 0.98


def test_accuracy_counts_what_the_sampler_returned(decoder, tokenizer, monkeypatch):
    problems = tasks.make_problems("chain_sum", 4, seed=0, split="held_out")
    answers = [problems[0].answer, "99", "", problems[3].answer]
    seen = {}

    def sampler(decoder, ids, *, eos_ids, **options):
        seen.update(options, prompts=ids, eos_ids=eos_ids)
        tokens = [tokenizer(" " + text + "\n", add_special_tokens=False)["input_ids"] for text in answers]
        return Samples(tokens, [], np.asarray([False, True, False, False]))

    monkeypatch.setattr(accuracy, "generate_tokens", sampler)
    result = accuracy.accuracy(decoder, tokenizer, problems, max_new_tokens=9)
    assert (result.rate, result.n, result.share_truncated, result.share_well_formed) == (0.5, 4, 0.25, 0.75)
    assert result.wilson95 == accuracy.wilson_interval(2, 4)
    assert set(seen["eos_ids"]) == {1, tokenizer.convert_tokens_to_ids("\n")}
    assert seen["max_new_tokens"] == 9
    assert tokenizer.decode(seen["prompts"][0][1:]).endswith("Answer:")


def test_empty_sets_are_refused(decoder, tokenizer):
    with pytest.raises(InputError, match="at least one problem"):
        sft.solution_loss(decoder, tokenizer, [])
    with pytest.raises(InputError, match="at least one problem"):
        accuracy.accuracy(decoder, tokenizer, [])
