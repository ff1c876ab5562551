"""Probes against scikit-learn, transfers on planted truths, and what bad input gets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import cohen_kappa_score

from hrsa_jax.hrsa.controls import planted
from hrsa_jax.hrsa.function import cohen_kappa, cross_model_probe, disagreement, fit_probe, group_split, scaler


def features(n: int, p: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Columns of very different size and offset, as hidden states have."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, p)) * np.exp(2 * random.standard_normal(p)) + 5 * random.standard_normal(p)
    return x.astype(np.float32), random.integers(0, classes, n)


def standardised(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return (x - x.mean(0)) / x.std(0)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("n", "p"), [(60, 8), (40, 70)])  # more rows than features, and fewer
def test_logistic_equals_scikit_learn(n, p, classes):
    x, labels = features(n, p, classes)
    for l2 in (0.05, 1.0, 100.0):
        probe = fit_probe(x, labels, l2=l2)
        theirs = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=100_000).fit(standardised(x), labels)
        assert np.max(probe.gradient_norm) < 1e-5
        np.testing.assert_allclose(probe.weights, theirs.coef_, atol=1e-4)
        np.testing.assert_allclose(probe.intercept, theirs.intercept_, atol=1e-4)
        new = features(200, p, classes, seed=0)[0]
        np.testing.assert_array_equal(probe.predict(new), theirs.predict(scaler(x)(new)))


@pytest.mark.parametrize("outputs", [None, 3])
def test_ridge_equals_scikit_learn(outputs):
    x, _ = features(30, 50, 2)
    targets = np.random.default_rng(1).standard_normal((30, outputs) if outputs else 30)
    probe = fit_probe(x, targets, kind="ridge", l2=2.5)
    theirs = Ridge(alpha=2.5).fit(standardised(x), targets)
    np.testing.assert_allclose(probe.weights, theirs.coef_, atol=1e-8)
    np.testing.assert_allclose(probe.predict(x), theirs.predict(standardised(x)), atol=1e-7)


def test_a_stack_of_layers_is_every_layer_alone():
    layers = np.stack([features(40, 60, 3, seed)[0] for seed in range(3)])
    labels = features(40, 60, 3)[1]
    strengths = np.array([0.5, 5.0, 50.0])
    stack = fit_probe(layers, labels, l2=strengths)
    for layer in range(3):
        alone = fit_probe(layers[layer], labels, l2=strengths[layer])
        np.testing.assert_allclose(stack.weights[layer], alone.weights, atol=1e-6)
        np.testing.assert_array_equal(stack.predict(layers)[layer], alone.predict(layers[layer]))


def test_labels_of_any_type_come_back():
    x, codes = features(40, 5, 2)
    names = np.array(["news", "sport"])[codes]
    assert set(fit_probe(x, names).predict(x)) <= {"news", "sport"}
    np.testing.assert_array_equal(fit_probe(x, names, l2=1e-3).weights, fit_probe(x, codes, l2=1e-3).weights)


def test_constant_columns_are_harmless():
    x, labels = features(40, 5, 2)
    wide = np.concatenate([x, np.full((40, 1), 1e6 / 3, np.float32), np.zeros((40, 1), np.float32)], 1)
    fit = fit_probe(wide, labels)
    np.testing.assert_allclose(fit.weights[:, :5], fit_probe(x, labels).weights, atol=1e-7)
    np.testing.assert_allclose(fit.weights[:, 5:], 0, atol=1e-12)
    np.testing.assert_array_equal(scaler(wide).scale[5:], 1)


def test_probes_run_under_jit():
    x, labels = features(60, 6, 3)
    inside = jax.jit(lambda rows: fit_probe(rows, labels, l2=10.0).predict(rows))(x)
    assert np.mean(np.asarray(inside) == fit_probe(x, labels, l2=10.0).predict(x)) > 0.98
    a, b = jnp.array([0, 1, 2, 2]), jnp.array([0, 1, 1, 2])
    assert float(jax.jit(cohen_kappa)(a, b)) == pytest.approx(cohen_kappa_score(a, b))
    assert float(jax.jit(disagreement)(a, b)) == 0.25


def test_kappa_equals_scikit_learn():
    random = np.random.default_rng(2)
    a, b = random.integers(0, 4, 50), random.integers(0, 4, 50)
    names = np.array(list("wxyz"))
    assert float(cohen_kappa(names[a], names[b])) == pytest.approx(cohen_kappa_score(a, b))
    assert np.isnan(cohen_kappa(np.ones(5), np.ones(5)))  # no variation: nothing to agree about
    assert float(disagreement(names[a], names[b])) == pytest.approx(np.mean(a != b))


@pytest.mark.parametrize(
    ("kind", "transfer_falls", "aligned_holds"),
    [
        ("identical", False, True),
        ("rotated", True, True),
        ("label_direction", True, None),
        ("independent", True, False),
    ],
)
def test_planted_truths(kind, transfer_falls, aligned_holds):
    truth = planted(kind, n=512, d=16)
    train = np.arange(512) < 256
    result = cross_model_probe(
        truth.x[train], truth.y[train], truth.labels[train], truth.x[~train], truth.y[~train], truth.labels[~train]
    )
    assert result.source > 0.97  # own ceilings hold whatever moved in between
    assert (result.target > 0.97) == (kind != "independent")
    for raw in (result.transfer, result.transfer_reverse):
        assert (raw < 0.85) == transfer_falls
    if aligned_holds is not None:
        assert (result.transfer_aligned > 0.97) == aligned_holds
        assert (result.agreement_aligned > 0.97) == aligned_holds
    if kind == "identical":
        assert result.agreement == 1
        assert result.kappa == 1


def test_rotation_is_undone_with_fewer_rows_than_features():
    random = np.random.default_rng(3)
    labels = np.arange(120) % 3
    x = random.standard_normal((120, 200)) * 0.3 + 2 * random.standard_normal((3, 200))[labels]
    rotation = np.linalg.qr(random.standard_normal((200, 200)))[0]
    y = 5 * x @ rotation + random.standard_normal(200)
    x, y = x.astype(np.float32), y.astype(np.float32)
    result = cross_model_probe(x[:60], y[:60], labels[:60], x[60:], y[60:], labels[60:], l2=10.0)
    assert result.transfer_aligned > 0.95
    assert result.transfer_aligned_reverse > 0.95


def test_each_side_is_read_through_its_own_scaler():
    x, labels = features(120, 30, 2)
    x[:, 0] += 3 * labels * x[:, 0].std()
    y = x * 50 + 7  # the same features in other units: nothing is lost
    result = cross_model_probe(x[:80], y[:80], labels[:80], x[80:], y[80:], labels[80:])
    assert result.transfer == result.source
    assert result.agreement == 1


def test_widths_may_differ_but_not_for_the_raw_transfer():
    x, labels = features(120, 30, 2)
    result = cross_model_probe(x[:80], x[:80, :7], labels[:80], x[80:], x[80:, :7], labels[80:], l2=10.0)
    assert np.isnan(result.transfer)
    assert np.isnan(result.agreement)
    assert 0 <= result.transfer_aligned <= 1
    assert "transfer" not in result.correct


def test_l2_is_chosen_on_training_groups_only():
    x, labels = features(120, 30, 2)
    arguments = (x[:80], x[:80], labels[:80])
    seen = cross_model_probe(*arguments, x[80:], x[80:], labels[80:])
    flipped = cross_model_probe(*arguments, x[80:], x[80:], 1 - labels[80:])  # other test labels, same choice
    assert seen.l2_source == flipped.l2_source
    assert seen.source == pytest.approx(1 - flipped.source)
    assert seen.l2_source >= 100  # labels are noise here: validation must ask for a strong penalty


def test_groups_never_cross_the_split():
    random = np.random.default_rng(4)
    groups = random.integers(0, 40, 200)
    labels = random.integers(0, 3, 40)[groups]
    for seed in range(5):
        held = group_split(labels, groups, share=0.3, seed=seed)
        assert not set(groups[held]) & set(groups[~held])
        assert 0.15 < held.mean() < 0.45
        assert set(labels[held]) == set(labels[~held]) == {0, 1, 2}
    assert np.any(group_split(labels, groups, share=0.3, seed=0) != group_split(labels, groups, share=0.3, seed=1))


X, LABELS = features(20, 4, 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fit_probe(X, [0] * 19 + [1]), "class 1 has one example"),
        (lambda: fit_probe(X, [0] * 20), "at least two"),
        (lambda: fit_probe(X, LABELS[:19]), "targets has shape"),
        (lambda: fit_probe(np.where(X > 1, np.nan, X), LABELS), "x contains NaN"),
        (lambda: fit_probe(X[0], LABELS), "x has shape"),
        (lambda: fit_probe(X, LABELS, l2=0.0), "l2 must be positive"),
        (lambda: fit_probe(X, LABELS, kind="svm"), "choose 'logistic' or 'ridge'"),
        (lambda: cross_model_probe(X, X[:19], LABELS, X, X, LABELS), "x_train has 20 rows and y_train 19"),
        (lambda: cross_model_probe(X, X, LABELS, X[:, :3], X, LABELS), "x_train has 4 features and x_test 3"),
        (lambda: cross_model_probe(X, X, LABELS, X, X, LABELS + 7), "labels_test holds"),
        (lambda: cohen_kappa([0, 1], [0, 1, 2]), "one length"),
        (lambda: group_split([0, 0, 1, 1], [0, 0, 1, 1], share=0.5, seed=0), "no group can be held out"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
