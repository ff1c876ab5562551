"""InfoNCE against torch (values and gradients), its mask, and its precision at temperature 0.02."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from hrsa_jax.embedding.loss import (
    contrastive_metrics,
    distillation_loss,
    info_nce,
    mask_by_score,
    matryoshka,
    symmetric_info_nce,
)

Q, K, D = 6, 3, 8
POSITIVE = np.arange(Q) * K


def vectors(seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(Q, D)).astype(np.float32), random.normal(size=(Q * K, D)).astype(np.float32)


def torch_loss(queries, passages, mask=None, temperature=0.02):
    q, p = (torch.nn.functional.normalize(x, dim=-1) for x in (queries, passages))
    logits = q @ p.T / temperature
    if mask is not None:
        logits = logits.masked_fill(~torch.tensor(mask), float("-inf"))
    return torch.nn.functional.cross_entropy(logits, torch.tensor(POSITIVE))


@pytest.mark.parametrize("masked", [False, True])
def test_loss_and_gradients_equal_torch(masked):
    queries, passages = vectors()
    mask = None
    if masked:
        mask = np.random.default_rng(1).random((Q, Q * K)) < 0.6
        mask[np.arange(Q), POSITIVE] = True
    tq, tp = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (queries, passages))
    expected = torch_loss(tq, tp, mask)
    expected.backward()
    got, (gq, gp) = jax.value_and_grad(lambda q, p: info_nce(q, p, POSITIVE, mask_QP=mask), argnums=(0, 1))(
        queries, passages
    )
    np.testing.assert_allclose(got, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gq, tq.grad, rtol=1e-4, atol=1e-5 * np.abs(tq.grad.numpy()).max())
    np.testing.assert_allclose(gp, tp.grad, rtol=1e-4, atol=1e-5 * np.abs(tp.grad.numpy()).max())


def test_rows_are_normalised_inside_and_dtype_is_float32():
    queries, passages = vectors()
    scaled = info_nce(queries * 7.0, passages * 0.01, POSITIVE)
    np.testing.assert_allclose(scaled, info_nce(queries, passages, POSITIVE), rtol=1e-5)
    low = info_nce(jnp.asarray(queries, jnp.bfloat16), jnp.asarray(passages, jnp.bfloat16), POSITIVE)
    rounded = [torch.tensor(np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)) for x in (queries, passages)]
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, torch_loss(*rounded).item(), rtol=1e-5)


def test_the_positive_counts_even_where_the_mask_hides_it():
    queries, passages = vectors()
    mask = np.ones((Q, Q * K), bool)
    mask[np.arange(Q), POSITIVE] = False
    np.testing.assert_allclose(
        info_nce(queries, passages, POSITIVE, mask_QP=mask), info_nce(queries, passages, POSITIVE), rtol=1e-6
    )
    alone = np.zeros((Q, Q * K), bool)
    assert float(info_nce(queries, passages, POSITIVE, mask_QP=alone)) == 0.0


def test_uniform_similarities_give_the_log_of_the_count():
    same = np.ones((Q, D), np.float32)
    np.testing.assert_allclose(info_nce(same, np.ones((Q * K, D), np.float32), POSITIVE), np.log(Q * K), rtol=1e-6)


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature"):
        info_nce(*vectors(), POSITIVE, temperature=0.0)


def test_metrics_equal_plain_numpy():
    queries, passages = vectors(3)
    mask = np.ones((Q, Q * K), bool)
    mask[0, 1:] = False
    mask[0, 5] = True
    metrics = contrastive_metrics(queries, passages, POSITIVE, mask_QP=mask)
    q, p = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, passages))
    scores = q @ p.T
    best = [max(scores[i, j] for j in range(Q * K) if mask[i, j] and j != POSITIVE[i]) for i in range(Q)]
    positive = scores[np.arange(Q), POSITIVE]
    np.testing.assert_allclose(metrics["gap"].value, np.mean(positive - best), rtol=1e-5)
    np.testing.assert_allclose(metrics["alignment"].value, np.mean(((q - p[POSITIVE]) ** 2).sum(1)), rtol=1e-5)
    squared = ((q[:, None] - q[None]) ** 2).sum(-1)[~np.eye(Q, dtype=bool)]
    np.testing.assert_allclose(metrics["uniformity"].value, np.log(np.exp(-2 * squared).mean()), rtol=1e-5)


def check_against_torch(loss, expected):
    """Value and gradients of loss(queries, passages) equal torch's in float64."""
    queries, passages = vectors(5)
    tensors = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (queries, passages)]
    value = expected(*tensors)
    value.backward()
    got, grads = jax.value_and_grad(loss, argnums=(0, 1))(queries, passages)
    np.testing.assert_allclose(got, value.item(), rtol=1e-5)
    for mine, tensor in zip(grads, tensors, strict=True):
        np.testing.assert_allclose(mine, tensor.grad, rtol=0, atol=1e-5 * np.abs(tensor.grad.numpy()).max())


def test_symmetric_loss_equals_torch():
    mask = np.ones((Q, Q * K), bool)
    mask[0, K] = mask[2, 4] = False  # query 0 is answered by the positive of query 1, too

    def expected(queries, passages):
        q, p = (torch.nn.functional.normalize(x, dim=-1) for x in (queries, passages))
        back = q @ p[POSITIVE].T / 0.02
        hidden = ~torch.tensor(mask[:, POSITIVE] | np.eye(Q, dtype=bool))
        back = back.masked_fill(hidden, float("-inf")).T
        return 0.5 * (torch_loss(queries, passages, mask) + torch.nn.functional.cross_entropy(back, torch.arange(Q)))

    check_against_torch(lambda q, p: symmetric_info_nce(q, p, POSITIVE, mask_QP=mask), expected)


def test_matryoshka_loss_equals_torch_and_refuses_sizes_that_are_not_there():
    def ours(queries, passages):
        return matryoshka(lambda q, p: info_nce(q, p, POSITIVE), queries, passages, (2, 5, D))

    def expected(queries, passages):
        return sum(torch_loss(queries[:, :size], passages[:, :size]) for size in (2, 5, D)) / 3

    check_against_torch(ours, expected)
    for sizes in ((), (0,), (D + 1,)):
        with pytest.raises(ValueError, match=r"must be one or more numbers in 1\.\.8"):
            matryoshka(lambda q, p: info_nce(q, p, POSITIVE), *vectors(), sizes)


def test_distillation_equals_torch_and_skips_queries_without_a_teacher():
    teacher = np.random.default_rng(2).uniform(0.2, 0.9, (Q, K))
    teacher[3, 1] = np.nan
    taught = [0, 1, 2, 4, 5]
    own = POSITIVE[:, None] + np.arange(K)

    def expected(queries, passages):
        q, p = (torch.nn.functional.normalize(x, dim=-1) for x in (queries, passages))
        scores = torch.stack([q[i] @ p[own[i]].T for i in taught])
        target = torch.tensor(teacher[taught] / 0.05).softmax(1)
        return torch.nn.functional.kl_div((scores / 0.02).log_softmax(1), target, reduction="batchmean")

    def ours(queries, passages):
        return distillation_loss(queries, passages, own, teacher, temperature=0.02, teacher_temperature=0.05).value

    check_against_torch(ours, expected)
    nobody = distillation_loss(*vectors(), own, np.full((Q, K), np.nan))
    assert float(nobody.value) == 0.0


def test_passages_above_the_positive_by_more_than_the_margin_are_hidden():
    queries, passages = vectors(6)
    q, p = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, passages))
    scores = q @ p.T
    given = np.random.default_rng(0).random((Q, Q * K)) < 0.8
    got = np.asarray(mask_by_score(queries, passages, POSITIVE, 0.1, given))
    expected = given & (scores <= scores[np.arange(Q), POSITIVE][:, None] + 0.1)
    np.testing.assert_array_equal(got, expected)
    assert (~got & given).any()


def test_metrics_of_parts_merge_to_those_of_the_whole():
    first, second = (contrastive_metrics(*vectors(seed), POSITIVE) for seed in (1, 2))
    for name, one in first.items():
        merged = one.merge(second[name])
        values = [np.asarray(mean.total / mean.count) for mean in (one, second[name])]
        together = np.mean(values)  # both parts are of one size
        np.testing.assert_allclose(merged.value, np.log(together) if name == "uniformity" else together, rtol=1e-5)
