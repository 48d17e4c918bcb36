"""A config's fields reach the chain, whose times are those of diffusers' scheduler."""

import types

import jax
import numpy as np
import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from configs import common
from diffusionrl_jax.diffusion.rectified_flow import LEAST_TRAINED_STD
from diffusionrl_jax.experiments.chain import make_chain
from diffusionrl_jax.models.folders.published import NOISE_SCHEDULE

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


def chain(scheduler, **changes):
    config = common.get_config()
    config.sampler.steps = 10
    config.update_from_flattened_dict(changes)
    return make_chain(config, types.SimpleNamespace(scheduler_config=scheduler))


def test_the_chain_is_that_of_the_models_scheduler():
    theirs = DDIMScheduler(**NOISE_SCHEDULE)
    theirs.set_timesteps(10)
    np.testing.assert_array_equal(chain(NOISE_SCHEDULE).times, theirs.timesteps)
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(10)
    np.testing.assert_allclose(chain(FLOW).times, theirs.sigmas[:-1], rtol=1e-6)


def test_noise_is_added_by_the_rule_and_as_strongly_as_the_config_says():
    """The standard deviation of Flow-CPS is that of the next level times sin(eta pi / 2)."""
    made = chain(FLOW, **{"sampler.noise": "cps", "sampler.eta": 0.5})
    index, latents = np.arange(10), np.zeros((10, 1), np.float32)
    std = made.step(latents, latents, index, 0.5).std.ravel()
    np.testing.assert_allclose(std, made.levels[1:] * np.sin(np.pi / 4), rtol=1e-6)
    assert made.stochastic_steps == np.count_nonzero(std > LEAST_TRAINED_STD) == 8
    assert chain(FLOW, **{"sampler.noise": "cps", "sampler.eta": 0.01}).stochastic_steps == 0


def test_the_order_of_the_steps_is_the_configs():
    made = chain(FLOW, **{"sampler.order": 2, "sampler.eta": 0.0})
    assert chain(FLOW).extrapolation is None and made.extrapolation.shape == (10,)
    with pytest.raises(ValueError, match="config.sampler.order=2 is for chains without noise"):
        chain(FLOW, **{"sampler.order": 2, "sampler.eta": 1.0})


def test_times_are_trained_at_as_the_config_says():
    """Uniform ones u are shifted to 3 u / (1 + 2 u): their quartiles."""
    draw = jax.vmap(chain(FLOW, training_times="uniform").draw_time)
    drawn = draw(jax.random.split(jax.random.key(0), 4000))
    quartiles = np.array([0.25, 0.5, 0.75])
    # The deviation of a quartile of 4000 draws is below 0.01.
    expected = 3 * quartiles / (1 + 2 * quartiles)
    np.testing.assert_allclose(np.quantile(drawn, quartiles), expected, atol=0.03)


def test_times_may_be_those_of_the_chain():
    made = chain(FLOW, training_times="steps")
    drawn = lambda *bounds: np.asarray(
        jax.vmap(lambda key: made.draw_time(key, *bounds))(
            jax.random.split(jax.random.key(0), 4000)
        )
    )
    values, counts = np.unique(drawn(), return_counts=True)
    np.testing.assert_array_equal(values, made.times[::-1])
    # The deviation of a share of 4000 draws is below 0.005.
    np.testing.assert_allclose(counts / 4000, 1 / made.steps, atol=0.02)
    within = made.times[(made.times >= 0.66) & (made.times <= 0.9)]
    np.testing.assert_array_equal(np.unique(drawn(0.66, 0.9)), within[::-1])
    # Between two steps there is none: it is the nearer one.
    between = float(0.9 * made.times[3] + 0.1 * made.times[4])
    np.testing.assert_array_equal(np.unique(drawn(between, between)), made.times[3])


@pytest.mark.parametrize(
    ("field", "value"),
    [("sampler.noise", "sde"), ("sampler.order", 2), ("training_times", "logit_normal")],
)
def test_what_is_for_flow_matching_alone_is_refused_by_its_field(field, value):
    with pytest.raises(ValueError, match=f"config.{field}={value!r} is for models of flow"):
        chain(NOISE_SCHEDULE, **{field: value})
