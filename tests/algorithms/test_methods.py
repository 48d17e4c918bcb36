"""Every method raises the reward that it is given: a toy's, and in the emoji world."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, worlds
from diffusionrl_jax.algorithms import ALGORITHMS
from diffusionrl_jax.experiments import experiment as experiments
from diffusionrl_jax.experiments import planning
from diffusionrl_jax.learning.execution import make_train_step
from diffusionrl_jax.monitoring.progress import PhaseTimer
from diffusionrl_jax.runs import trained
from tests.algorithms import toy

WITHOUT_NOISE = {"sampler.eta": 0.0}
# Of each method: changes of the config, and iterations.
METHODS = {
    "nft": (WITHOUT_NOISE | {"algorithm.nft.error": "clean"}, 12),
    "awm": (WITHOUT_NOISE | {"optimizer.learning_rate": 5e-5}, 10),
    "reward_gradient": (WITHOUT_NOISE | {"optimizer.learning_rate": 1e-4}, 10),
}
# In the world of flow matching, whose policy gradient has noise in two steps.
FLOW_METHODS = {
    "policy_gradient": ({}, 12),
    "nft": (WITHOUT_NOISE | {"sampler.window": 0}, 12),
}
WEIGHTED = {"from_base": False, "noises": 2, "weighting": "softmax"}
WEIGHTED = {f"algorithm.reward_weighted.{name}": value for name, value in WEIGHTED.items()}
WEIGHTED |= {
    "sampler.steps": 16,
    "optimizer.learning_rate": 1e-5,
    "optimizer.warmup_iterations": 0,
}
SHARED_PREFIX = {f"tasks.task{number}.shared_noise": True for number in range(2)}
SHARED_PREFIX |= {
    f"algorithm.policy_gradient.{name}": 1 for name in ("shared_prefix", "timesteps_per_iteration")
}


@pytest.fixture
def cheap_noise(hasty):
    """Random numbers whose programs compile in half of the time."""
    usual = jax.config.jax_default_prng_impl
    jax.config.update("jax_default_prng_impl", "unsafe_rbg")
    yield
    jax.config.update("jax_default_prng_impl", usual)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_two_parameters_learn_the_reward(name, cheap_noise):
    """In ten iterations of 16 pictures, each with its own noise."""
    made = toy.make(name)
    state, before = made.state, toy.expected_reward(made.state.params)
    for _ in range(10):
        state, metrics = made.step(state, made.frozen, made.batch)
    after = toy.expected_reward(state.params)
    print(f"{name}: {before:.3f} to {after:.3f}, level {state.params['level']:.3f}")
    # The rates allow for at most 0.05.
    assert after > before + 0.01 and state.params["level"] > 0
    assert np.isfinite(jax.device_get(metrics["loss"])).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [
        *((name, {}) for name in ALGORITHMS),
        ("policy_gradient", SHARED_PREFIX),
        ("draft_k", {"tasks.task1.algorithm": "nft"}),
    ],
)
def test_a_run_goes_on_from_a_checkpoint_to_the_bit(name, more, hasty, tmp_path):
    """On eight devices with an average of the parameters and past rewards of two tasks."""
    prompts = {"normalisation": "prompt", "prompt_min_count": 2, "most_prompts": 3}
    changes = {f"tasks.task1.{field}": value for field, value in prompts.items()}
    changes |= {"ema_decay": 0.5, "batch_size": 32} | more
    made = toy.make(name, devices=8, tasks=2, **changes)
    places = jnp.asarray(np.repeat([0, 1, 2], 4)[np.arange(32) % 12])
    batch = made.batch.replace(prompt_places=(None, places))
    state = made.state
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    for _ in range(2):
        state, _ = made.step(state, made.frozen, batch)
    with contextlib.closing(trained.open_checkpoints(str(tmp_path), made.config)) as kept:
        kept.save(2, state.saved(), {"best": 0.0})
        kept.wait()
        _, again = trained.restore_state(kept, abstract)
    finals = [made.step(each, made.frozen, batch)[0] for each in (state, again)]
    assert finals[0].step == 3
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get(finals))
    assert jax.tree.structure(finals[0]) == jax.tree.structure(finals[1])


def emoji_gains(name, iterations, changes, world="emoji"):
    """Trains in an emoji world, on its preference alone.

    Returns how much more than the base model's each picture is preferred afterwards, with the same
    noise and prompts, which were not trained on: float32 [320].
    """
    config = worlds.EMOJI[world]("preference")
    changes = {"batch_size": 160, "pretraining.weight": 0.0, "algorithm.name": name} | changes
    config.update_from_flattened_dict(changes)
    config, _ = planning.resolve(config)
    made = experiments.build(config)
    state, phases = made.init_state(), made.algorithm.phases()
    sample, score = jax.jit(phases.sample), jax.jit(phases.score)

    def rewards(params):
        found = []
        for place in (1000, 1001):
            batch = made.batch(place)
            samples = sample(params, made.frozen, batch.input_ids, place)
            found.append(score(made.frozen, samples, batch.reward_inputs)[0])
        return np.concatenate(found)

    before = rewards(state.params)
    step = make_train_step(made.algorithm, made.abstract_state(), "split", PhaseTimer())
    for iteration in range(iterations):
        state, _ = step(state, made.frozen, made.batch(iteration))
    gains = rewards(state.params) - before
    change = f"{before.mean():.3f} {gains.mean():+.3f}, standard error {error(gains):.3f}"
    print(f"{world}, {name}: {change}")
    return gains


def error(values):
    """Returns the standard error of a mean."""
    return values.std() / len(values) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_training_raises_the_reward(name, compilation_cache):
    changes, iterations = METHODS[name]
    gains = emoji_gains(name, iterations, changes)
    assert gains.mean() > 4 * error(gains)


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOW_METHODS)
def test_training_raises_the_reward_of_flow_matching(name, compilation_cache):
    changes, iterations = FLOW_METHODS[name]
    gains = emoji_gains(name, iterations, changes, "emoji_flow")
    assert gains.mean() > 4 * error(gains)


@pytest.mark.slow
def test_weights_raise_the_reward(compilation_cache):
    """Beside equal weights. A model that learns what it draws itself learns its faults, too."""
    temperature = "algorithm.reward_weighted.temperature"
    equal, weighted = (
        emoji_gains("reward_weighted", 12, WEIGHTED | {temperature: number})
        for number in (1e6, 0.3)
    )
    assert (weighted - equal).mean() > 4 * error(weighted - equal)


LORA = {"lora.rank": 2, "sampler.guidance_scale": 2.0}
SPLIT_PARAMETERS = {"mesh.fsdp": 2, "microbatch.train": 2, "batch_size": 32}
WAYS = [
    ("draft_k", "fused", LORA | {"algorithm.draft_k.steps": 2}),
    ("draft_k", "split", SPLIT_PARAMETERS | {"algorithm.draft_k.steps": 3}),
    ("draft_lv", "split", LORA | SPLIT_PARAMETERS),
    ("refl", "split", LORA | SPLIT_PARAMETERS),
    ("crd", "fused", LORA),
    ("raft", "split", {"pretraining.weight": 1.0, "pretraining.pictures": "base:16"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "execution", "changes"), WAYS)
def test_a_unet_is_trained_in_every_way(make_config, tmp_path, name, execution, changes):
    """With LoRA or whole, guided or not, split over devices, with pretraining beside it."""
    config = make_config(**{"algorithm.name": name, "batch_size": 16})
    config.algorithm.refl.late_steps = 2
    config.tasks.small.update(group_size=2, normalisation="group")
    config.tasks.small.scorer = common.make_scorer("tests.algorithms.toy:Brightness")
    config.update_from_flattened_dict(changes)
    config, _ = planning.resolve(config)
    made = experiments.build(config).with_pictures(str(tmp_path / "cache"))
    before = made.init_state()
    old = jax.device_get(before.params)
    step = make_train_step(made.algorithm, made.abstract_state(), execution, PhaseTimer())
    state, metrics = step(before, made.frozen, made.batch(0))
    metrics = jax.device_get(metrics)
    assert metrics["gradient_norm"].min() > 0 and np.isfinite(metrics["loss"]).all()
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), state.params, old)
    assert max(jax.tree.leaves(moved)) > 0
    assert len(metrics["loss"]) == len(metrics["objective"])
