"""Microbatches lose nothing, keep the order, and leave every sample on its device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusionrl_jax.distributed.mesh import batch_sharding, make_mesh
from diffusionrl_jax.distributed.microbatch import (
    map_microbatches,
    mean_over_microbatches,
    merge,
    microbatch_count,
    split,
)


@pytest.mark.parametrize(
    ("batch", "per_device", "count"),
    [(64, 0, 1), (64, 8, 1), (64, 100, 1), (64, 4, 2), (64, 1, 8), (48, 3, 2)],
)
def test_count(batch, per_device, count):
    assert microbatch_count(batch, per_device, devices=8) == count


def test_count_refuses_a_microbatch_that_does_not_divide_the_share():
    with pytest.raises(ValueError, match="share of the batch, 8, is not a multiple.* 3"):
        microbatch_count(64, 3, devices=8)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("fsdp", [1, 4])
def test_split_keeps_every_device_its_share_and_merge_undoes_it(axis, fsdp):
    mesh = make_mesh(fsdp)
    count, batch = 2, 32
    lengths = (batch, 3) if axis == 0 else (2, batch, 3)
    numbers = np.arange(np.prod(lengths)).reshape(lengths)
    whole = jax.device_put(numbers, batch_sharding(mesh, axis))
    parts = jax.jit(lambda tree: split(tree, count, mesh, axis))(whole)
    assert parts.shape == (count, *lengths[:axis], batch // count, 3)
    owner = {shard.device: set(np.ravel(shard.data)) for shard in whole.addressable_shards}
    for shard in parts.addressable_shards:
        assert shard.data.shape == (count, *lengths[:axis], batch // count // mesh.size, 3)
        assert set(np.ravel(shard.data)) == owner[shard.device]
    back = jax.jit(lambda tree: merge(tree, count, mesh, axis))(parts)
    np.testing.assert_array_equal(back, numbers)
    assert back.sharding.is_equivalent_to(whole.sharding, whole.ndim)


def test_empty_arrays_are_split_and_merged():
    mesh, empty = make_mesh(), jnp.zeros((32, 0))  # Samples of which no step is kept.
    parts = split(empty, 2, mesh)
    assert parts.shape == (2, 16, 0)
    assert merge(parts, 2, mesh).shape == empty.shape


def test_splitting_moves_nothing_between_devices():
    mesh = make_mesh()
    sharding = batch_sharding(mesh)
    program = jax.jit(lambda x: split(x, 4, mesh), in_shardings=sharding)
    text = program.lower(jnp.zeros((64, 3))).compile().as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert collective not in text


@pytest.mark.parametrize("count", [1, 2, 4])
def test_map_is_the_function_of_the_whole_batch(count):
    mesh = make_mesh()
    rng = np.random.default_rng(0)
    tree = {"a": rng.standard_normal((32, 3)), "b": rng.standard_normal(32)}
    tree = jax.device_put(tree, batch_sharding(mesh))

    def function(tree):
        assert len(tree["b"]) == 32 // count
        return {"sum": tree["a"].sum(1) + tree["b"], "a": jnp.sin(tree["a"])}

    result = jax.jit(lambda tree: map_microbatches(function, tree, count, mesh))(tree)
    np.testing.assert_allclose(
        result["sum"], np.asarray(tree["a"]).sum(1) + tree["b"], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(result["a"], np.sin(tree["a"]), rtol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_mean_over_microbatches_is_that_of_all_samples(count):
    share = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)

    def gradient(rows):
        return {"mean": rows.mean(0)}, {"first": rows[:, 0].mean(), "most": rows.max()}

    reductions = {"first": "mean", "most": "max"}
    mean = lambda rows: mean_over_microbatches(gradient, rows, count, reductions)
    gradients, scalars = jax.jit(mean)(share)
    np.testing.assert_allclose(gradients["mean"], share.mean(0), rtol=1e-5)
    np.testing.assert_allclose(scalars["first"], share[:, 0].mean(), rtol=1e-5)
    assert scalars["most"] == share.max()


def test_arrays_without_numbers_are_split_too():
    """As the steps that are kept of chains that are not trained on."""
    mesh = make_mesh()
    arguments = jnp.arange(32.0), jnp.zeros((32, 0), jnp.int32)
    function = lambda part: (2 * part[0], part[1])
    found = jax.jit(lambda tree: map_microbatches(function, tree, 2, mesh))(arguments)
    np.testing.assert_array_equal(found[0], 2 * np.arange(32))
    assert found[1].shape == (32, 0)
