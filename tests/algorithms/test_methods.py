"""Every method raises the reward that it is given, in the emoji world."""

import numpy as np
import pytest

from configs import emoji
from diffusionrl_jax.experiments import experiment as experiments
from diffusionrl_jax.experiments import planning
from diffusionrl_jax.learning.execution import make_train_step
from diffusionrl_jax.monitoring.progress import PhaseTimer

WEIGHTED = {"from_base": False, "noises": 4, "weighting": "softmax", "temperature": 0.2}
WITHOUT_NOISE = {"sampler.eta": 0.0}
# Of each method: changes of the config, iterations, and how many at either end are compared.
METHODS = {
    "reward_weighted": (
        {f"algorithm.reward_weighted.{name}": value for name, value in WEIGHTED.items()},
        *(16, 4),
    ),
    "nft": (WITHOUT_NOISE, 12, 4),
    "awm": (WITHOUT_NOISE, 12, 4),
    "draft_lv": (WITHOUT_NOISE | {"optimizer.learning_rate": 1e-4}, 10, 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_training_raises_the_reward(name, compilation_cache):
    """The emoji world's preference, of the trained model's own samples."""
    changes, iterations, ends = METHODS[name]
    config = emoji.get_config("preference")
    changes = {"batch_size": 160, "pretraining.weight": 0.0, "algorithm.name": name} | changes
    config.update_from_flattened_dict(changes)
    config, _ = planning.resolve(config)
    made = experiments.build(config)
    state, rewards = made.init_state(), []
    step = make_train_step(made.algorithm, made.abstract_state(), "split", PhaseTimer())
    for iteration in range(iterations):
        state, metrics = step(state, made.frozen, made.batch(iteration))
        rewards.append(float(metrics["reward_mean"][0]))
    print(f"{name}: {np.round(rewards, 3)}")
    # 160 pictures of other prompts each: a mean's standard error is about 0.05.
    assert np.mean(rewards[-ends:]) > np.mean(rewards[:ends]) + 0.1
