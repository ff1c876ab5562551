"""Attention implementations against a plain float64 softmax written out here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hrsa_jax.models.attention import attend
from hrsa_jax.runtime.mesh import make_mesh


def inputs(T, segments, seed=0):
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(2, T, 4, 8)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, T, 2, 8)).astype(np.float32)
    ids = np.sort(rng.integers(0, segments + 1, (2, T)), axis=1)[:, ::-1].astype(np.int32)
    return q, k, v, np.ascontiguousarray(ids)


def reference(q, k, v, ids, attention, window):
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(*q.shape[:3]):
        keys = [
            s
            for s in range(q.shape[1])
            if ids[b, s] == ids[b, t]
            and (s <= t or attention == "bidirectional")
            and (window is None or (t - s < window if attention == "causal" else abs(t - s) <= window))
        ]
        scores = k[b, keys, n // 2].astype(np.float64) @ q[b, t, n]
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights @ v[b, keys, n // 2] / weights.sum()
    return out


@pytest.mark.parametrize("implementation", ["xla", "blocked", "rows", "auto"])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("window", [None, 1, 20])
def test_implementations(implementation, attention, window, monkeypatch):
    monkeypatch.setattr("hrsa_jax.models.attention.BLOCK", 16)
    monkeypatch.setattr("hrsa_jax.models.attention.TOKENS_AT_ONCE", 60)  # of "rows": one row at a time
    q, k, v, ids = inputs(T=50, segments=2)
    out = attend(q, k, v, jnp.asarray(ids), attention=attention, window=window, implementation=implementation)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, reference(q, k, v, ids, attention, window), atol=2e-6)


def test_rows_in_groups_and_their_gradients_equal_the_reference(monkeypatch):
    monkeypatch.setattr("hrsa_jax.models.attention.TOKENS_AT_ONCE", 50)  # groups of two rows, and one left over
    q, k, v, ids = (np.concatenate([array, array[:1][:, ::-1]]) for array in inputs(T=25, segments=2))
    assert len(q) == 3

    def total(implementation, *arrays):
        out = attend(*arrays, jnp.asarray(ids), attention="causal", implementation=implementation)
        return jnp.sum(out * jnp.arange(out.size).reshape(out.shape) % 7)

    value, gradients = jax.value_and_grad(total, (1, 2, 3))("rows", q, k, v)
    expected, wanted = jax.value_and_grad(total, (1, 2, 3))("xla", q, k, v)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for found, want in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(found, want, atol=1e-5 * np.abs(want).max())


def test_a_mesh_of_devices_keeps_rows_together():
    text = jax.jit(attend, static_argnames="attention").lower(*inputs(T=8, segments=1), attention="causal").as_text()
    with jax.set_mesh(make_mesh()):
        on_mesh = jax.jit(lambda *a: attend(*a, attention="causal")).lower(*inputs(T=8, segments=1)).as_text()
    assert "while" in text
    assert "while" not in on_mesh


def test_a_traced_window_and_half_precision():
    q, k, v, ids = inputs(T=40, segments=1)
    for window in (3, 10_000):
        out = attend(q, k, v, jnp.asarray(ids), attention="causal", window=jnp.int32(window))
        np.testing.assert_allclose(out, reference(q, k, v, ids, "causal", window), atol=2e-6)
    half = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    out = attend(*half, jnp.asarray(ids), attention="causal")
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, reference(q, k, v, ids, "causal", None), atol=0.1)


@pytest.mark.parametrize(("attention", "window"), [("causal", None), ("bidirectional", None), ("causal", 30)])
def test_splash_in_interpret_mode(attention, window):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(1, 128, 2, 128)).astype(np.float32) / 8
    k, v = rng.normal(size=(2, 1, 128, 1, 128)).astype(np.float32)
    ids = np.repeat([1, 2, 0], [70, 40, 18])[None].astype(np.int32)
    settings = {"attention": attention, "window": window}
    out = attend(q, k, v, jnp.asarray(ids), implementation="splash_interpret", **settings)
    expected = attend(q, k, v, jnp.asarray(ids), implementation="xla", **settings)
    np.testing.assert_allclose(out, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "sideways"}, "attention is 'sideways'"),
        ({"implementation": "flash"}, "implementation is 'flash'"),
        ({"implementation": "splash"}, "multiple of 128"),
        ({"implementation": "cudnn", "window": 4}, "no sliding windows"),
    ],
)
def test_refusals(changes, message):
    q, k, v, ids = inputs(T=5, segments=1)
    with pytest.raises(ValueError, match=message):
        attend(q, k, v, jnp.asarray(ids), **({"attention": "causal"} | changes))
