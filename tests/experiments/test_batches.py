"""What an iteration takes from the host, on any mesh."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from configs import common
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.experiments import experiment as experiments
from diffusionrl_jax.experiments.batches import make_batch
from diffusionrl_jax.rewards.host_reward import HostReward
from tests.algorithms import toy


def test_batch_is_a_function_of_the_step(experiment):
    first, again, next_step = (jax.device_get(experiment.batch(step)) for step in (3, 3, 4))
    assert jax.tree.all(jax.tree.map(np.array_equal, first, again))
    assert not np.array_equal(first.input_ids, next_step.input_ids)


@pytest.mark.parametrize(("fsdp", "devices"), [(2, 8), (4, 4), (1, 2)])
def test_batch_does_not_depend_on_the_mesh(experiment, fsdp, devices):
    mesh = make_mesh(fsdp, jax.devices()[:devices])
    policy = dataclasses.replace(experiment.policy, mesh=mesh)
    other = dataclasses.replace(experiment, policy=policy).batch(3)
    assert other.input_ids.sharding.mesh == other.pretraining["input_ids"].sharding.mesh == mesh
    same = jax.tree.map(np.array_equal, jax.device_get(other), jax.device_get(experiment.batch(3)))
    assert jax.tree.all(same)


def test_batch_has_every_tasks_prompts(experiment):
    batch = jax.device_get(experiment.batch(0))
    tokenizer = experiment.policy.model.tokenizer
    assert experiment.task_names == ("people", "small")
    people, pairs = (
        tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in batch.input_ids
    )
    assert people == [experiment.sources[0][index] for index in (0, 0, 0, 0, 1, 1, 1, 1)]
    assert pairs == [experiment.sources[1][index] for index in range(8)]


def test_a_batch_has_a_pretraining_picture_for_each_sample(experiment):
    pretraining = jax.device_get(experiment.batch(0)).pretraining
    assert pretraining["latent_mean"].shape == (8, 4, 16, 16)
    assert pretraining["input_ids"].shape == (8, 16)


def test_prompts_are_told_apart_where_they_are_normalised_by(make_config):
    task = common.make_task(
        common.make_scorer("jpeg_size"), "emoji:portraits", 2, normalisation="prompt"
    )
    config = make_config(**{"tasks.people": task})
    experiment = experiments.build(config)
    people, small = map(experiment.task_names.index, ("people", "small"))
    batches = [experiment.batch(step) for step in range(4)]
    assert all(batch.prompt_places[small] is None for batch in batches)
    places = np.concatenate([batch.prompt_places[people] for batch in batches])
    ids = np.concatenate([batch.input_ids[people] for batch in batches])
    same_prompt = (ids[:, None] == ids).all(-1)
    np.testing.assert_array_equal(places[:, None] == places, same_prompt)
    assert 4 <= len(set(places.tolist())) and max(places) < len(experiment.prompt_places[people])
    past_rewards = experiment.init_state().memory["past_rewards"]
    assert past_rewards[small] is None and past_rewards[people].rewards.shape == (4096, 32)


def test_scorers_on_the_host_are_told_which_image_is_of_which_prompt():
    config = common.get_config()
    scorer = common.make_scorer("host_reward", "tests.scorers:brightness")
    config.tasks.seen = common.make_task(scorer, "emoji:pairs", group_size=2)
    config.batch_size = 8
    policy = types.SimpleNamespace(model=toy.Toy(), mesh=make_mesh())
    prompts = ["", "a", "an", "one", "four", "three", "twelve", "hundred"]
    on_host, in_graph = HostReward("tests.scorers:brightness"), toy.Brightness()
    for reward in (on_host, in_graph):
        batch = make_batch(config, policy, [reward], [prompts], [None], None, 1)
        # Four prompts of two images each have been drawn before.
        asked = [text for text in prompts[4:] for _ in range(2)]
        np.testing.assert_array_equal(batch.input_ids[0, :, 0], [len(text) for text in asked])
        if reward is in_graph:
            assert batch.questions == ()
            continue
        (questions,) = batch.questions
        assert list(questions.prompts) == asked
        assert questions.metadata == [
            {"task": "seen", "iteration": 1, "index": row} for row in range(8)
        ]
