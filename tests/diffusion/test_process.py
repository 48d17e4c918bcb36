"""Chains are made as a model's scheduler says, and how much each step weighs, by its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusionrl_jax.diffusion.ddim import make_ddim
from diffusionrl_jax.diffusion.process import make_process, sensitivity
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders.published import NOISE_SCHEDULE

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [10, 50])
def test_sensitivity_scales_the_gradient_of_the_log_probability(prediction_type, steps):
    process = make_ddim(NOISE_SCHEDULE | {"prediction_type": prediction_type}, steps)
    rng = np.random.default_rng(steps)
    output, latents, noise = rng.standard_normal((3, steps, 4, 8, 8)).astype(np.float32)
    taken = process.step(output, latents, jnp.arange(steps), 1.0)

    def total(output):
        moved = process.step(output, latents, jnp.arange(steps), 1.0)
        return moved.log_prob(taken.mean + taken.std * noise).sum()

    # d log p / d output = (noise / std) (d mean / d output) / elements.
    expected = np.abs(noise) / 256 * sensitivity(process, 1.0).reshape(-1, 1, 1, 1)
    gradient = np.abs(jax.grad(total)(jnp.asarray(output)))
    np.testing.assert_allclose(gradient, expected, rtol=1e-2, atol=1e-3 * expected.max())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("DDIMScheduler", {"noise": "cps"}, "noise='cps' is for models of flow"),
        ("DDIMScheduler", {"order": 2}, "sampler.order=2 is for .* set it to 1"),
        (
            "DDIMScheduler",
            {"training_times": "logit_normal"},
            "config.training_times='logit_normal' is for .* DDIMScheduler: set it to 'uniform'",
        ),
        ("TurboScheduler", {}, "TurboScheduler is not supported: use one of .*DDIMScheduler"),
    ],
)
def test_refuses_what_it_would_get_wrong(name, options, message):
    with pytest.raises(UserError, match=message):
        make_process({"_class_name": name}, 10, **options)


def test_times_are_drawn_as_a_model_was_trained_unless_it_is_said(hasty):
    """ "auto" is Stable Diffusion 3's normal logits for a flow, and uniform timesteps elsewhere."""
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = lambda process: np.float64(jax.jit(jax.vmap(process.draw_time))(keys))
    # Half of what is normal lies within 0.6745 of the mean: of the sigmoid, within 0.6625.
    inside = lambda times: np.mean((times > 1 - 0.6625) & (times < 0.6625))
    assert inside(drawn(make_process(FLOW, 10))) == pytest.approx(0.5, abs=0.04)
    uniform = drawn(make_process(FLOW, 10, training_times="uniform"))
    assert inside(uniform) == pytest.approx(2 * 0.6625 - 1, abs=0.04)
    assert inside(drawn(make_process({}, 10)) / 1000) == pytest.approx(2 * 0.6625 - 1, abs=0.04)
