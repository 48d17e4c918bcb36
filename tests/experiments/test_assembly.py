"""Which parts an experiment is put together of, and where they lie."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from configs import common
from diffusionrl_jax.distributed.mesh import abstract_arrays, make_mesh, place
from diffusionrl_jax.experiments import assembly
from diffusionrl_jax.experiments.algorithm import initial_state
from tests.algorithms import toy

LARGE = {"to_q": {"kernel": jax.ShapeDtypeStruct((512, 1024), np.float32)}}
PARAMS = {"denoiser": LARGE, "text_encoder": {}, "vae": {}}
SPLIT = PartitionSpec(None, "fsdp")


def make_config(**changes):
    config = common.get_config()
    scorer = common.make_scorer("jpeg_size")
    config.tasks.small = common.make_task(scorer, "emoji:pairs")
    config.algorithm.policy_gradient.timesteps_per_iteration = 1
    config.sampler.steps, config.pretraining.weight = 3, 0.0
    config.lora.targets = ("to_q",)
    config.update_from_flattened_dict(changes)
    return config


def assemble(put=abstract_arrays, **changes):
    rewards = [(toy.Brightness(), LARGE)]
    return assembly.assemble(make_config(**changes), toy.Toy(), PARAMS, make_mesh(4), rewards, put)


@pytest.mark.parametrize("split", [False, True])
def test_rewards_are_split_as_the_config_says(split):
    algorithm, frozen = assemble(**{"mesh.split_frozen": split})
    (params,) = frozen.rewards
    assert params["to_q"]["kernel"].sharding.spec == (SPLIT if split else PartitionSpec())
    assert algorithm.rewards == (toy.Brightness(),)
    np.testing.assert_array_equal(frozen.empty_ids.shape, (1,))


@pytest.mark.parametrize(
    ("changes", "kept"),
    [({}, False), ({"algorithm.policy_gradient.kl_weight": 0.1}, True), ({"lora.rank": 2}, True)],
    ids=["without", "kl", "lora"],
)
def test_the_base_is_held_where_iterations_take_it(changes, kept):
    _, frozen = assemble(**changes)
    assert frozen.base is (LARGE if kept else None)


def test_targets_that_are_not_there_are_refused_before_rewards_are_placed():
    placed = lambda *_: pytest.fail("The rewards are placed.")
    with pytest.raises(ValueError, match="names 'to_x', but the denoiser has no such module"):
        assemble(placed, **{"lora.rank": 2, "lora.targets": ("to_x",)})


def test_the_states_shapes_are_those_of_the_state():
    """And its large arrays are split as the parameters are."""
    config = make_config(ema_decay=0.5)
    found = assembly.abstract_state(config, LARGE, make_mesh(4))
    state = jax.eval_shape(functools.partial(initial_state, config), LARGE)
    described = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert described(found) == described(state)
    large = [leaf for leaf in jax.tree.leaves(found) if leaf.shape == (512, 1024)]
    assert len(large) == 4  # Parameters, their average, and Adam's two moments.
    assert {leaf.sharding.spec for leaf in large} == {SPLIT}


def test_each_device_has_its_rows_of_a_batch():
    ids, offsets = np.arange(32).reshape(2, 16, 1), np.arange(16.0)
    batch = assembly.put_batch(
        make_mesh(2),
        place,
        input_ids=ids,
        reward_inputs=({"offset": offsets}, {}),
        prompt_places=(None, np.arange(16)),
        pretraining="as it is",
    )
    assert batch.pretraining == "as it is" and batch.prompt_places[0] is None
    rows = batch.reward_inputs[0]["offset"], batch.prompt_places[1], batch.input_ids[0]
    for array in rows:
        np.testing.assert_array_equal(np.ravel(array), np.arange(16))
    for array, axis in ((batch.input_ids, 1), (rows[0], 0), (rows[1], 0)):
        assert {shard.data.shape[axis] for shard in array.addressable_shards} == {2}


def test_judges_are_loaded_once_for_each_size_of_groups():
    """And not where a task has the same scorer for groups of that size."""
    size, clip = (common.make_scorer(name) for name in ("jpeg_size", "clip_score"))
    config = make_config()
    config.evaluation.scorers = {"size": size, "clip": clip}
    sets = {"pairs": (("size", "clip"), 1), "more": (("clip",), 1), "people": (("size", "clip"), 4)}
    for name, (scorers, group_size) in sets.items():
        config.evaluation.sets[name] = common.make_evaluation_set(
            "emoji:pairs", 8, scorers, group_size
        )
    found = [(scorer.reward, group_size) for scorer, group_size in assembly.judges(config)]
    assert sorted(found) == [("clip_score", 1), ("clip_score", 4), ("jpeg_size", 4)]
