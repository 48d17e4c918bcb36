"""Groups that share a prefix learn what their images learn that are drawn by themselves.

On the model of two parameters, with all options of the method; `tests/learning/test_branching.py`
has a UNet. What rounding leaves of differences grows with the second iteration: 1e-4 of each value.
"""

import jax
import numpy as np
import pytest

from diffusionrl_jax.learning.execution import make_train_step
from diffusionrl_jax.monitoring.progress import PhaseTimer
from tests.algorithms import toy
from tests.apart import apart

FIELDS = "algorithm.policy_gradient"
GROUP, PARTS = 4, 2
SHARED = {
    f"{FIELDS}.timesteps_per_iteration": 1,
    f"{FIELDS}.shared_prefix": PARTS,
    "batch_size": 8 * GROUP * PARTS,
    "tasks.task0.shared_noise": True,
    "tasks.task1.shared_noise": True,
}
OPTIONS = {
    "plain": {},
    "all": {
        f"{FIELDS}.kl_weight": 0.5,
        f"{FIELDS}.balance_timesteps": True,
        f"{FIELDS}.remove_ratio_bias": True,
        f"{FIELDS}.most_divergence": 1e-5,
    },
}
MICROBATCHES = {f"microbatch.{name}": GROUP for name in ("sample", "train")}


def run(made, algorithm):
    """(parameters, metrics of each iteration) after two iterations."""
    step = make_train_step(algorithm, made.state, "fused", PhaseTimer())
    state, history = made.state, []
    for _ in range(2):
        state, metrics = step(state, made.frozen, made.batch)
        history.append(metrics)
    return jax.device_get((state.params, history))


def make(devices, **changes):
    return toy.make("policy_gradient", devices=devices, tasks=2, **SHARED | changes)


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_parameters_and_metrics_are_those_of_images_apart(option, hasty):
    changes = OPTIONS[option]
    made, alone = make(8, **MICROBATCHES, **changes), make(1, **changes)
    params, history = run(made, made.algorithm)
    expected, its_history = run(alone, apart(alone.algorithm))
    for name, value in expected.items():
        np.testing.assert_allclose(params[name], value, rtol=1e-4)
    for metrics, others in zip(history, its_history, strict=True):
        assert metrics.keys() == others.keys()
        for name, value in others.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=2e-6, err_msg=name)
    assert np.abs(history[0]["gradient_norm"]).min() > 1e-3


def test_the_denoiser_is_shown_each_group_once(hasty):
    experience = make(1).algorithm.experience
    # Four steps, of which a group takes 1 to 4 together.
    assert experience.evaluations == 2.5 / GROUP + 1.5
    assert make(1, **{f"{FIELDS}.shared_prefix": 0}).algorithm.experience.evaluations == 4
    shapes = jax.eval_shape(experience.sample, *arguments(make(8)))
    groups = 8 * PARTS
    assert shapes.text.shape[:2] == shapes.steps.latents.shape[:2] == (2, groups)
    assert shapes.steps.following.shape[:4] == (2, groups, 1, GROUP)
    assert shapes.images.shape[:2] == (2, groups * GROUP)


def arguments(made):
    return made.state.params, made.frozen, made.batch.input_ids, 0
