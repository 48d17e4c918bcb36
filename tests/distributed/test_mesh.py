"""The mesh and the sharding rules, on eight virtual devices."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from diffusionrl_jax.distributed.mesh import (
    BATCH_AXES,
    REPLICATED_BYTES,
    batch_sharding,
    check_batch,
    frozen_sharding,
    local_slices,
    make_mesh,
    parameter_sharding,
    place,
    replicated,
    spans_slices,
    undivided_share,
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


@pytest.mark.parametrize(("fsdp", "spans"), [(1, False), (4, False), (8, True)])
def test_a_split_over_several_slices_is_noticed(fsdp, spans):
    of_slice = [types.SimpleNamespace(slice_index=number // 4) for number in range(8)]
    rows = np.asarray(of_slice).reshape(-1, fsdp)
    assert spans_slices(types.SimpleNamespace(devices=rows)) == spans
    assert not spans_slices(make_mesh(fsdp))


def test_a_process_feeds_the_rows_of_its_devices():
    mesh = make_mesh(2)
    parts = local_slices(batch_sharding(mesh), 16)
    assert parts == [slice(first, first + 2) for first in range(0, 16, 2)]
    assert local_slices(replicated(mesh), 16) == [slice(0, 16)]


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


@pytest.mark.parametrize(("fsdp", "share"), [(1, 0), (2, 3 / 11), (4, 3 / 11), (8, 1)])
def test_large_parameters_that_cannot_be_split_are_counted(fsdp, share):
    mesh = AbstractMesh((8 // fsdp, fsdp), BATCH_AXES)
    small = {"bias": shape(8), "rest": shape(0)}
    tree = small | {"odd": shape(3, 2**18 + 1), "even": shape(4, 2 * (2**18 + 1))}
    assert undivided_share(mesh, tree) == pytest.approx(share, abs=1e-4)


def test_optimiser_slots_and_average_are_split_like_their_parameters():
    mesh = make_mesh(4)
    params = {"large": np.zeros((512, 1024), np.float32), "small": np.zeros(8, np.float32)}
    state = init_state(params, optax.adamw(1e-3), ema_decay=0.9)
    state = jax.device_put(state, parameter_sharding(mesh, state))
    adam = state.optimizer_state[0]
    for tree in (state.params, adam.mu, adam.nu, state.ema_params):
        assert {shard.data.shape for shard in tree["large"].addressable_shards} == {(512, 256)}
        assert {shard.data.shape for shard in tree["small"].addressable_shards} == {(8,)}


def test_frozen_parameters_are_split_or_whole():
    mesh = make_mesh(4)
    large = {"kernel": shape(512, 1024)}
    assert frozen_sharding(mesh, large, split=True)["kernel"].spec == PartitionSpec(None, "fsdp")
    assert frozen_sharding(mesh, large, split=False)["kernel"].spec == PartitionSpec()


def test_host_arrays_are_placed_as_said():
    mesh = make_mesh(2)
    tree = {"ids": np.arange(48).reshape(16, 3), "flag": np.ones(16, bool)}
    placed = place(tree, batch_sharding(mesh))
    split = place(tree, {"ids": batch_sharding(mesh), "flag": replicated(mesh)})
    for name, values in tree.items():
        np.testing.assert_array_equal(placed[name], values)
        np.testing.assert_array_equal(split[name], values)
        assert placed[name].sharding.is_equivalent_to(batch_sharding(mesh), values.ndim)
    assert split["flag"].sharding.is_fully_replicated
    assert placed["ids"].dtype == jnp.int32


# Stable Diffusion 1.5's widest and narrowest shapes.
KERNELS = [(3, 3, 320, 320), (3, 3, 1280, 1280), (3, 3, 2560, 1280), (1280, 10240), (768, 320)]
EMBEDDINGS = [(49408, 768), (3072, 768), (3, 3, 512, 512), (320, 1280), (1280, 320)]


@pytest.mark.parametrize("fsdp", [2, 4, 8])
def test_nothing_large_of_stable_diffusion_is_on_every_device(fsdp):
    mesh = make_mesh(fsdp)
    params = {str(lengths): shape(*lengths) for lengths in KERNELS + EMBEDDINGS}
    state = jax.eval_shape(lambda tree: init_state(tree, optax.adamw(1e-3), 0.9), params)
    for tree in (state, params):
        for leaf, sharding in zip(
            jax.tree.leaves(tree),
            jax.tree.leaves(parameter_sharding(mesh, tree)),
            strict=True,
        ):
            if leaf.size * 4 >= REPLICATED_BYTES:
                assert np.prod(sharding.shard_shape(leaf.shape)) * fsdp == leaf.size


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
