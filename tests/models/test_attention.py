"""Attention implementations against a plain float64 softmax written out here."""

import jax.numpy as jnp
import numpy as np
import pytest

from hrsa_jax.models.attention import attend, attend_cached


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


@pytest.mark.parametrize("implementation", ["xla", "blocked", "auto"])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("window", [None, 1, 20])
def test_implementations(implementation, attention, window, monkeypatch):
    monkeypatch.setattr("hrsa_jax.models.attention.BLOCK", 16)
    q, k, v, ids = inputs(T=50, segments=2)
    out = attend(q, k, v, jnp.asarray(ids), attention=attention, window=window, implementation=implementation)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, reference(q, k, v, ids, attention, window), atol=2e-6)


def test_a_traced_window_and_half_precision():
    q, k, v, ids = inputs(T=40, segments=1)
    for window in (3, 10_000):
        out = attend(q, k, v, jnp.asarray(ids), attention="causal", window=jnp.int32(window))
        np.testing.assert_allclose(out, reference(q, k, v, ids, "causal", window), atol=2e-6)
    half = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    out = attend(*half, jnp.asarray(ids), attention="causal")
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, reference(q, k, v, ids, "causal", None), atol=0.1)


def test_cached_attention_equals_whole_rows():
    q, k, v, _ = inputs(T=12, segments=1)
    ids = np.ones((2, 12), np.int32)
    expected = reference(q, k, v, ids, "causal", 5)
    cache_k, cache_v = np.full((2, 2, 20, 2, 8), 9.0, np.float32)
    cache_k[:, :9], cache_v[:, :9] = k[:, :9], v[:, :9]
    out = attend_cached(
        q[:, 9:], k[:, 9:], v[:, 9:], cache_k, cache_v, start_B=jnp.array([9, 9]), first_B=jnp.zeros(2, int), window=5
    )
    np.testing.assert_allclose(out, expected[:, 9:], atol=2e-6)


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
