"""Streams ROWS rows of 31 x 576 activations of two models through the covariance engine; prints the peak memory in MB.

Run by test_cka_layers.py in a process of its own: `python memory_of_stream.py ROWS BATCH all|matching`.
"""

import resource
import sys

import numpy as np

from hrsa_jax.hrsa.cka_batches import layers_init, layers_result, layers_update

LAYERS, WIDTH = 31, 576


def main() -> None:
    rows, batch, pairs = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((LAYERS, batch, WIDTH), np.float32)
    y = x + rng.standard_normal(x.shape, np.float32)
    state = layers_init(LAYERS, WIDTH, LAYERS, WIDTH, pairs=pairs)
    for number in range(rows // batch):
        shift = np.float32(1 + number % 7)
        state = layers_update(state, x * shift, y * shift)
    assert int(state.high.n) == rows
    assert np.isfinite(np.asarray(layers_result(state))).all()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


main()
