"""The mesh and the sharding rules, on eight virtual devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from diffusionrl_jax.distributed.mesh import (
    REPLICATED_BYTES,
    batch_sharding,
    check_batch,
    make_mesh,
    parameter_sharding,
)
from diffusionrl_jax.learning.state import init_state


@pytest.mark.parametrize(("fsdp", "shape"), [(1, (8, 1)), (2, (4, 2)), (8, (1, 8))])
def test_mesh_holds_every_device(fsdp, shape):
    mesh = make_mesh(fsdp)
    assert tuple(mesh.shape.values()) == shape
    assert mesh.axis_names == ("data", "fsdp")
    assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize("fsdp", [0, 3, 16])
def test_mesh_refuses_what_does_not_divide_the_devices(fsdp):
    with pytest.raises(ValueError, match=rf"mesh.fsdp={fsdp} must be one of \[1, 2, 4, 8\]"):
        make_mesh(fsdp)


def test_batch_is_split_over_both_axes():
    mesh = make_mesh(2)
    array = jax.device_put(jnp.zeros((3, 16, 5)), batch_sharding(mesh, axis=1))
    assert {shard.data.shape for shard in array.addressable_shards} == {(3, 2, 5)}


def shape(*lengths):
    return jax.ShapeDtypeStruct(lengths, jnp.float32)


@pytest.mark.parametrize(
    ("leaf", "spec"),
    [
        (shape(512, 1024), PartitionSpec(None, "fsdp")),
        (shape(3, 3, 320, 320), PartitionSpec(None, None, "fsdp")),  # the first of equals
        (shape(4, 1_000_003), PartitionSpec("fsdp")),  # the largest dimension is not divisible
        (shape(3, 1_000_003), PartitionSpec()),  # none is
        (shape(REPLICATED_BYTES // 4), PartitionSpec("fsdp")),
        (shape(REPLICATED_BYTES // 4 - 4), PartitionSpec()),  # small
        (shape(), PartitionSpec()),
    ],
)
def test_large_parameters_are_split_along_their_largest_divisible_dimension(leaf, spec):
    assert parameter_sharding(make_mesh(4), leaf).spec == spec
    assert parameter_sharding(make_mesh(1), leaf).spec == PartitionSpec()


def test_optimiser_slots_and_average_are_split_like_their_parameters():
    mesh = make_mesh(4)
    params = {"large": np.zeros((512, 1024), np.float32), "small": np.zeros(8, np.float32)}
    state = init_state(params, optax.adamw(1e-3), ema_decay=0.9)
    state = jax.device_put(state, parameter_sharding(mesh, state))
    adam = state.optimizer_state[0]
    for tree in (state.params, adam.mu, adam.nu, state.ema_params):
        assert {shard.data.shape for shard in tree["large"].addressable_shards} == {(512, 256)}
        assert {shard.data.shape for shard in tree["small"].addressable_shards} == {(8,)}


@pytest.mark.parametrize(
    ("batch", "group", "message"),
    [
        (12, 1, r"batch_size=12 must be a multiple of 8 \(8 devices.*: use 8 or 16"),
        (3, 1, "use 8"),
        (0, 1, "batch_size=0.*use 8"),
        (40, 16, r"multiple of 16 \(8 devices, groups of 16\): use 32 or 48"),
        (32, 5, "multiple of 40.*: use 40"),
    ],
)
def test_batch_must_divide_over_devices_and_groups(batch, group, message):
    with pytest.raises(ValueError, match=message):
        check_batch("config.batch_size", batch, make_mesh(), group)


@pytest.mark.parametrize(("batch", "group"), [(8, 1), (8, 4), (48, 16), (40, 5)])
def test_batch_that_divides_is_accepted(batch, group):
    check_batch("config.batch_size", batch, make_mesh(), group)
