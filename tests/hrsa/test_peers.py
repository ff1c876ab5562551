"""Agreement with other people's packages where they measure the same. cka-pytorch (which needs lightning, torchmetrics
and seaborn) and rsatoolbox are no requirements: their tests are skipped unless they can be imported."""

import numpy as np
import pytest

from hrsa_jax.hrsa import geometry, other_measures
from hrsa_jax.hrsa.representation import dimension_correlation, procrustes_distance

N, P, Q = 60, 8, 6


def data() -> tuple[np.ndarray, np.ndarray]:
    """x (N, P), y (N, Q), partly the same; means that differ between columns."""
    random = np.random.default_rng(5)
    x = random.standard_normal((N, P)) * np.arange(1, P + 1) ** -0.5 + np.arange(P)
    y = x @ random.standard_normal((P, Q)) + 2 * random.standard_normal((N, Q))
    return x.astype(np.float32), y.astype(np.float32)


def test_scipy():
    from scipy.spatial import procrustes
    from scipy.stats import pearsonr

    x, y = data()
    for side in (y, np.float32(1e-7) * y):
        expected = [pearsonr(x[:, k].astype(float), side[:, k].astype(float)).statistic for k in range(Q)]
        np.testing.assert_allclose(dimension_correlation(x[:, :Q], side), expected, rtol=1e-5)
    disparity = procrustes(x[:, :Q].astype(float), y.astype(float))[2]  # both of unit size, the best scale applied
    np.testing.assert_allclose(np.sin(procrustes_distance(x[:, :Q], y)[1]) ** 2, disparity, rtol=1e-5)


def test_cka_pytorch():
    calculator = pytest.importorskip("cka_pytorch").CKACalculator
    import torch

    torch.manual_seed(0)
    models = [torch.nn.Sequential(*(torch.nn.Linear(P, P) for _ in range(depth))) for depth in (3, 2)]
    models = [model.double() for model in models]  # its kernels are not centred: in float32 it is off by 7e-4 here
    inputs = torch.from_numpy(data()[0]).double()
    peer = calculator(*models, [torch.nn.Linear], [torch.nn.Linear], verbose=False)
    found = peer.calculate_cka_matrix([(inputs, 0)], num_epochs=1, epsilon=0.0)
    states = []
    with torch.no_grad():
        for model in models:
            rows = [inputs]
            for layer in model:
                rows.append(layer(rows[-1]))
            states.append(torch.stack(rows[1:]).float().numpy())
    ours = geometry.cka_matrix(*states)
    assert ours.shape == (3, 2)
    np.testing.assert_allclose(ours, found.numpy(), rtol=1e-5)


def test_rsatoolbox():
    rsatoolbox = pytest.importorskip("rsatoolbox")
    x, y = data()
    sides = [rsatoolbox.data.Dataset(side.astype(float)) for side in (x, y)]

    def peer(kernel: str, method: str) -> float:
        tables = [rsatoolbox.rdm.calc_rdm(side, method=kernel) for side in sides]
        return rsatoolbox.rdm.compare(*tables, method=method).item()

    for kernel in ("correlation", "euclidean"):
        np.testing.assert_allclose(other_measures.rsa(x, y, kernel=kernel), peer(kernel, "spearman"), rtol=1e-5)
    # Diedrichsen et al. 2020: the whitened cosine of squared distances is the biased linear CKA
    found = geometry.linear_cka(x, y, debiased=False)
    np.testing.assert_allclose(found, peer("euclidean", "cosine_cov"), rtol=1e-5)
    # Harvey et al. 2023: the Bures similarity of centred kernels is the cosine of the Procrustes angle
    np.testing.assert_allclose(np.cos(procrustes_distance(x, y)[1]), peer("euclidean", "bures"), rtol=1e-5)
