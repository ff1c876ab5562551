"""The mesh and the table that splits arrays over it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.mesh import constrain, make_mesh, named_sharding, partition_spec, shard_batch


def test_one_size_may_be_left_open():
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(make_mesh(fsdp=2, tensor=2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(make_mesh(data=1, fsdp=1, devices=jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("sizes", [{"data": 3}, {"data": -1, "fsdp": -1}, {"fsdp": 0}, {"fsdp": 3}])
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(InputError, match="mesh sizes"):
        make_mesh(**sizes)


def test_axes_that_do_not_divide_are_replicated():
    shape = {"data": 1, "fsdp": 4, "tensor": 2}
    assert partition_spec(shape, ("vocab", None), (96, 32)) == P(("tensor", "fsdp"))
    assert partition_spec(shape, ("vocab", None), (100, 32)) == P("tensor")
    assert partition_spec(shape, ("vocab", None), (97, 32)) == P()
    assert partition_spec(shape, (None, "embed", "heads"), (3, 32, 64)) == P(None, "fsdp", "tensor")
    # 3 kv heads of 64 features: 192 divides by 2, but a head would be cut
    assert partition_spec(shape, (None, "embed", "kv_heads"), (3, 32, 192), (3, 32, 3)) == P(None, "fsdp")
    assert partition_spec(shape, ("embed", "embed"), (8, 8)) == P("fsdp")
    with pytest.raises(ValueError, match="unknown logical axis 'head'"):
        partition_spec(shape, ("head",), (8,))
    with pytest.raises(ValueError, match="do not match the shape"):
        partition_spec(shape, ("heads",), (8, 8))


def test_shard_batch_splits_rows_over_data_and_fsdp():
    mesh = make_mesh(data=2, fsdp=4)
    batch = shard_batch(mesh, {"x": np.arange(32.0).reshape(16, 2), "odd": np.arange(3), "scalar": 5})
    assert batch["x"].addressable_shards[0].data.shape == (2, 2)
    assert batch["odd"].sharding.is_fully_replicated
    np.testing.assert_array_equal(batch["x"], np.arange(32.0).reshape(16, 2))
    assert int(batch["scalar"]) == 5


def test_constrain_reaches_the_compiler_and_is_nothing_without_a_mesh():
    x = jnp.ones((8, 4))
    assert constrain(x, ("batch", None)) is x
    mesh = make_mesh(data=8)
    with jax.set_mesh(mesh):
        out = jax.jit(lambda x: constrain(x * 2, ("batch", None)))(x)
    assert out.sharding.is_equivalent_to(named_sharding(mesh, ("batch", None), (8, 4)), 2)
    assert out.addressable_shards[0].data.shape == (1, 4)


def test_constrain_inside_shard_map_leaves_manual_axes_alone():
    mesh = make_mesh(data=8)
    double = jax.shard_map(
        lambda x: constrain(x * 2, ("batch", None)), mesh=mesh, in_specs=P("data"), out_specs=P("data")
    )
    np.testing.assert_array_equal(double(jnp.ones((8, 4))), 2 * np.ones((8, 4)))
