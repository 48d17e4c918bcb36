"""What follows from a config for an iteration: its noise, its updates and its first state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from diffusionrl_jax.algorithms import ALGORITHMS
from diffusionrl_jax.experiments.algorithm import (
    images_per_iteration,
    initial_state,
    make_algorithm,
    needs_base,
    scores_on_host,
    updates_per_iteration,
)
from diffusionrl_jax.learning import draws
from diffusionrl_jax.learning.phases import iteration
from tests.algorithms import toy


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_two_images_share_noise_unless_the_config_says_so(name):
    """And then only where a step is credited with its own noise."""
    for shared in (False, True):
        changes = {f"tasks.task{number}.shared_noise": shared for number in range(2)}
        experience = toy.make(name, tasks=2, **changes).algorithm.experience
        firsts, trained = experience.trained_steps(3, 16)
        steps = experience.process.steps
        sources = np.asarray(draws.noise_sources(firsts, trained, steps))
        own = np.broadcast_to(np.arange(32).reshape(2, 16, 1), sources.shape)
        alike = name == "policy_gradient" and shared
        assert (sources == own).all() != alike
        keys = draws.noise_keys(experience.sampling.seed, 3, jnp.asarray(own.reshape(32, -1)))
        assert len(np.unique(jax.random.key_data(keys).reshape(-1, 2), axis=0)) == keys.size


def test_rules_of_groups_need_groups():
    made = toy.make("nft")
    made.config.tasks.task0.update(normalisation="win_rate", group_size=1)
    experience = made.algorithm.experience
    with pytest.raises(ValueError, match="task0 is normalised by win rate: set its group_size"):
        make_algorithm(made.config, experience.model, experience.mesh, experience.rewards)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("policy_gradient", {"pretraining.weight": 1.0}),
        ("refl", {}),
        ("dpo_offline", {}),
    ],
    ids=["policy_gradient", "refl", "dpo_offline"],
)
def test_the_updates_are_those_of_an_iteration(name, changes):
    """Of two tasks; pairs of pictures are learned from once for both."""
    made = toy.make(name, tasks=2, **changes)
    batch = made.batch.replace(pretraining=made.batch.pairs if changes else None)
    run = functools.partial(iteration, made.algorithm.phases())
    _, metrics = jax.eval_shape(run, made.state, made.frozen, batch)
    assert metrics["loss"].shape == (updates_per_iteration(made.config),)


def test_noise_is_shared_only_where_a_step_is_credited_with_its_own():
    """The steps of a task that does not learn are not kept: its images would be one."""
    changes = {"tasks.task0.shared_noise": True, "tasks.task0.weight": 0.0}
    made = toy.make("policy_gradient", tasks=2, **changes | {"tasks.task1.algorithm": "nft"})
    draw = made.algorithm.phases().sample
    samples = draw(made.state.params, made.frozen, made.batch.input_ids, 0)
    first, second = np.asarray(samples.latents[0])[:2]
    assert np.abs(first - second).max() > 0.1


BASE = {"to_q": {"kernel": jnp.ones((8, 6))}}
PLAIN = {"step", "params", "optimizer_state"}


def first_state(*given, **changes):
    """The state of a task with 2 past rewards of each of 5 prompts, and changes by dotted name."""
    config = common.get_config()
    scorer = common.make_scorer("jpeg_size")
    config.tasks.task = common.make_task(
        scorer, "emoji:pairs", group_size=2, prompt_buffer=2, most_prompts=5
    )
    config.lora.targets = ("to_q",)
    config.update_from_flattened_dict({"ema_decay": 0.0} | changes)
    return config, initial_state(config, BASE, *given)


def test_the_first_state_keeps_what_its_config_needs():
    config, state = first_state()
    assert state.saved().keys() - {"ema_params"} == PLAIN and state.ema_params is None
    np.testing.assert_array_equal(state.params["to_q"]["kernel"], 1)
    assert not needs_base(config)
    _, state = first_state(ema_decay=0.5)
    np.testing.assert_array_equal(state.ema_params["to_q"]["kernel"], 1)
    _, state = first_state(**{"tasks.task.normalisation": "prompt"})
    assert state.memory["past_rewards"][0].rewards.shape == (5, 2)
    # It draws with an average of the parameters that it has learned.
    _, state = first_state(**{"algorithm.name": "nft"})
    assert state.memory.keys() == {"drawing_params"}


def test_samples_are_drawn_ahead_where_a_part_of_a_score_is_made_on_the_host():
    host = common.make_scorer("host_reward", "tests.scorers:brightness")
    both = common.make_weighted_sum(host=(host, 1.0), size=(common.make_scorer("jpeg_size"), 1.0))
    for overlaps in (True, False):
        changes = {"tasks.task.scorer": both, "overlap_scoring": overlaps}
        config, state = first_state(**changes)
        assert scores_on_host(config) and state.samples_ahead == overlaps
    config, state = first_state(overlap_scoring=True)
    assert not scores_on_host(config) and not state.samples_ahead


def test_loras_factors_are_drawn_by_the_seed_or_given():
    config, drawn = first_state(**{"lora.rank": 2})
    shapes = jax.tree.map(jnp.shape, drawn.params["to_q"])
    assert shapes == {"lora_A": {"kernel": (8, 2)}, "lora_B": {"kernel": (2, 6)}}
    assert needs_base(config)
    down = lambda state: np.asarray(state.params["to_q"]["lora_A"]["kernel"])
    np.testing.assert_array_equal(down(drawn), down(first_state(**{"lora.rank": 2})[1]))
    other = first_state(**{"lora.rank": 2, "seed": config.seed + 1})[1]
    assert np.abs(down(drawn) - down(other)).min() > 0
    given = jax.tree.map(lambda leaf: leaf + 7, drawn.params)
    _, state = first_state(given, **{"lora.rank": 2})
    jax.tree.map(np.testing.assert_array_equal, state.params, given)


def test_pairs_are_one_batch_whatever_the_tasks(make_config):
    config = make_config(batch_size=16)
    config.tasks.other = config.tasks.small
    assert images_per_iteration(config) == 32
    config.algorithm.name = "dpo_offline"
    assert images_per_iteration(config) == 16
