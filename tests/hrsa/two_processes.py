"""One of two real processes: CKA and neighbours of rows that no process holds alone, against one device's numbers.

Run by test_ring.py: `python two_processes.py PORT RANK`. Prints "equal" when everything agrees.
"""

import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType

from hrsa_jax.hrsa import geometry, ring


def main(port: str, rank: int) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", 2, rank)
    assert jax.process_count() == 2
    assert len(jax.local_devices()) == 2
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    xs = (rng.standard_normal((2, 75, 6)) + 5).astype(np.float32)
    ys = (xs[:1, :, :5] + rng.standard_normal((3, 75, 5))).astype(np.float32)
    expected = np.asarray(geometry.cka_matrix(xs, ys))
    for by_gram in (True, False):
        ring.gram_is_cheaper = lambda *_, chosen=by_gram: chosen
        found = np.asarray(ring.sharded_cka_matrix(xs, ys, mesh).addressable_data(0))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    neighbours = ring.sharded_nearest_neighbors(xs[0], 7, mesh)
    assert not neighbours.is_fully_addressable
    together = multihost_utils.process_allgather(neighbours, tiled=True)
    np.testing.assert_array_equal(together, geometry.nearest_neighbors(xs[0], 7))
    print("equal", flush=True)


main(sys.argv[1], int(sys.argv[2]))
