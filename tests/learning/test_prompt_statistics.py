"""Advantages by prompt against the published tracker, and its statistics in checkpoints."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from diffusionrl_jax.distributed.mesh import batch_sharding, parameter_sharding, replicated
from diffusionrl_jax.learning.advantages import batch_normalised, prompt_normalised
from diffusionrl_jax.learning.execution import make_train_step
from diffusionrl_jax.learning.prompt_statistics import add_rewards, init_statistics, moments
from diffusionrl_jax.learning.state import TrainState, init_state
from diffusionrl_jax.monitoring.progress import PhaseTimer
from diffusionrl_jax.runs.checkpoints import Checkpoints
from tests.processes import shapes_of

PROMPTS, BATCH = 5, 24
NO_CLIP = 1e9


@functools.partial(jax.jit, static_argnums=(3, 4))
def step(statistics, places, rewards, min_count, clip=10.0):
    """The new statistics, the advantages, and where the prompts' own statistics were used."""
    statistics = add_rewards(statistics, places, rewards)
    by_prompt = moments(statistics, places, min_count)
    return statistics, prompt_normalised(rewards, by_prompt, clip), by_prompt.enough


class PublishedTracker:
    """As DDPO describes it: a queue of each prompt's last rewards."""

    def __init__(self, buffer, min_count):
        self.min_count = min_count
        self.queues = collections.defaultdict(lambda: collections.deque(maxlen=buffer))

    def __call__(self, prompts, rewards):
        advantages = np.empty(len(rewards))
        for prompt in np.unique(prompts):
            queue = self.queues[prompt]
            queue.extend(rewards[prompts == prompt])
            known = rewards if len(queue) < self.min_count else np.array(queue)
            here = prompts == prompt
            advantages[here] = (rewards[here] - known.mean()) / (known.std() + 1e-6)
        return advantages


def draw_batches(count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        # Some prompts are rare, so that they fall back on the batch for longer.
        places = rng.choice(PROMPTS, BATCH, p=[0.5, 0.3, 0.1, 0.07, 0.03]).astype(np.int32)
        yield places, (rng.normal(places * 3, 1 + places)).astype(np.float32)


@pytest.mark.parametrize(
    ("buffer", "min_count"), [(32, 16), (8, 8), (3, 1)], ids=["usual", "short", "overflowing"]
)
def test_equals_the_published_tracker(buffer, min_count):
    """A batch may hold more rewards of a prompt than are kept: the last ones stay."""
    tracker, statistics = PublishedTracker(buffer, min_count), init_statistics(PROMPTS, buffer)
    used = []
    for places, rewards in draw_batches(12):
        expected = tracker(places, rewards.astype(np.float64))
        statistics, ours, enough = step(statistics, places, rewards, min_count, NO_CLIP)
        # A prompt whose kept rewards are all alike gets 0, and there rounding alone.
        np.testing.assert_allclose(ours.values, expected, rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(ours.reward_mean, rewards.mean(), rtol=1e-5)
        used.append(enough)
        for place, queue in tracker.queues.items():
            kept = np.sort(np.asarray(statistics.rewards[place, : len(queue)]))
            np.testing.assert_array_equal(kept, np.sort(np.float32(queue)))
    assert np.any(used)
    if min_count > 1:
        assert not np.all(used)


def test_invalid_rewards_are_neither_kept_nor_trained_on():
    places = jnp.asarray([0, 0, 0, 1, 1, 1])
    rewards = jnp.asarray([1.0, jnp.nan, 3.0, jnp.inf, jnp.nan, 4.0])
    statistics, result, _ = step(init_statistics(2, 4), places, rewards, 2)
    np.testing.assert_array_equal(statistics.counts, [2, 1])
    np.testing.assert_array_equal(statistics.rewards, [[1, 3, 0, 0], [4, 0, 0, 0]])
    np.testing.assert_array_equal(result.valid, [1, 0, 1, 0, 0, 1])
    np.testing.assert_allclose(result.values[:3], [-1, 0, 1], rtol=1e-5)
    np.testing.assert_array_equal(result.values[3:5], 0)
    # One reward is too few: the batch's mean and deviation are used.
    np.testing.assert_allclose(result.values[5], batch_normalised(rewards, 10.0).values[5])


def test_rewards_that_are_all_alike_teach_nothing():
    rewards = jnp.full(9, -37.123)
    _, result, _ = step(init_statistics(1, 32), jnp.zeros(9, jnp.int32), rewards, 1)
    np.testing.assert_array_equal(result.values, 0)


def test_advantages_are_clipped():
    rewards = np.eye(1, 200, dtype=np.float32)[0]
    _, result, _ = step(init_statistics(1, 200), np.zeros(200, np.int32), rewards, 1)
    assert result.values[0] == 10


def by_prompt(setup, buffer=8):
    """The same setup with its second task normalised by prompt, and its state."""
    setup = setup.changed(counts=(1, 3))
    mesh, places = setup.algorithm.mesh, np.arange(8, dtype=np.int32) % 2
    batch = setup.batch.replace(
        prompt_places=(None, jax.device_put(places, batch_sharding(mesh))),
    )
    setup = dataclasses.replace(setup, batch=batch)
    memory = {"past_rewards": (None, init_statistics(2, buffer))}
    state = init_state(setup.params, setup.parts["optimizer"], 0.5, memory)
    return setup, jax.device_put(state, parameter_sharding(mesh, state))


@pytest.mark.parametrize("devices", [1, 8])
def test_is_the_same_on_any_number_of_devices(build, devices):
    setup, state = by_prompt(build(devices=devices))
    memory = state.memory
    expected_past = jax.device_get(memory["past_rewards"][1])
    advantages = jax.jit(setup.algorithm.rules)
    for places, rewards in draw_batches(3):
        rewards = np.stack([rewards[:8], rewards[8:16]])
        placed = jax.device_put(rewards, batch_sharding(setup.algorithm.mesh, axis=1))
        result, memory = advantages(placed, setup.batch, memory)
        past = memory["past_rewards"]
        assert past[1].rewards.sharding.is_equivalent_to(replicated(setup.algorithm.mesh), 2)
        places = np.asarray(setup.batch.prompt_places[1])
        expected_past, ours, _ = step(expected_past, places, rewards[1], 3)
        expected = [jax.jit(batch_normalised)(rewards[0], 10.0).values, ours.values]
        np.testing.assert_allclose(result.values, expected, atol=1e-5)
        assert jax.tree.all(jax.tree.map(np.array_equal, past[1], expected_past))


def test_past_rewards_are_kept_with_the_parameters(tmp_path):
    rewards = np.array([0.1, 2, 3], np.float32)
    past = (None, step(init_statistics(4, 3), np.array([1, 1, 2]), rewards, 1)[0])
    params, optimizer = {"kernel": jnp.ones((3, 2))}, optax.adamw(1e-3)
    make = lambda: init_state(params, optimizer, 0.5, {"past_rewards": past}).saved()
    state = make()
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(1, state)
    checkpoints.wait()
    restored = checkpoints.restore_step(1, shapes_of(make()))
    # As `runs.load_params` does, which wants the parameters alone.
    shapes = jax.eval_shape(make)
    nothing = jax.tree.map(lambda leaf: ocp.PLACEHOLDER, shapes)
    some = checkpoints.restore_step(1, nothing | {"ema_params": shapes_of(state["ema_params"])})
    checkpoints.close()
    np.testing.assert_array_equal(some["ema_params"]["kernel"], params["kernel"])
    assert some["past_rewards"][1].counts is ocp.PLACEHOLDER
    assert restored["past_rewards"][0] is None
    assert jax.tree.all(jax.tree.map(np.array_equal, restored, state))


def test_other_runs_have_no_past_rewards():
    state = init_state({"kernel": jnp.ones(3)}, optax.sgd(0.1), 0)
    assert state.memory == {} and "past_rewards" not in state.saved()


@pytest.mark.slow
@pytest.mark.parametrize(("execution", "devices"), [("split", 8), ("fused", 1)])
def test_a_resumed_run_ends_bit_for_bit_alike(build, tmp_path, execution, devices):
    setup, state = by_prompt(build(devices=devices))
    shapes = shapes_of(state)
    train_step = make_train_step(setup.algorithm, state, execution, PhaseTimer())
    checkpoints = Checkpoints(str(tmp_path))
    for iteration in (1, 2):
        state, metrics = train_step(state, setup.frozen, setup.batch)
        past = state.memory["past_rewards"][1]
        np.testing.assert_array_equal(past.counts, 4 * iteration)
        if iteration == 1:
            checkpoints.save(1, state.saved())
            checkpoints.wait()
    latest = past.rewards[:, 4:].mean()
    np.testing.assert_allclose(latest, metrics["reward_mean"][1], rtol=1e-4, atol=1e-5)
    restored = TrainState.of_saved(checkpoints.restore_step(1, shapes.saved()))
    resumed, _ = train_step(restored, setup.frozen, setup.batch)
    checkpoints.close()
    assert jax.tree.all(jax.tree.map(np.array_equal, resumed, state))
