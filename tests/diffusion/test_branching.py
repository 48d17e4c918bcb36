"""Chains of a group that part at one step, against diffusers' DDIMScheduler with the same noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusionrl_jax.diffusion.branching import branch, steps_together
from diffusionrl_jax.diffusion.guidance import conditions
from diffusionrl_jax.diffusion.process import make_process
from diffusionrl_jax.models.folders.published import NOISE_SCHEDULE
from tests.diffusion.test_rollout import MODEL, SCALE, SHAPE, STEPS, denoise, tensor

GROUPS, SIZE = 2, 3
PROCESS = make_process(NOISE_SCHEDULE, STEPS)
EMPTY = jnp.full((5, 3), 0.2)


@pytest.fixture(scope="module")
def given():
    """The prompts' states, and the keys of the noise in common and of each sample's own."""
    prompts = np.random.default_rng(0).standard_normal((GROUPS, 5, 3)).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), (GROUPS, STEPS + 1))
    return jnp.asarray(prompts), keys, jax.random.split(jax.random.key(2), (GROUPS, SIZE))


@jax.jit
def branched(prompts, keys, own, index):
    text = conditions(prompts, EMPTY, SCALE)
    return branch(MODEL, PROCESS, 0.7, text, keys, own, index, eta=1.0, guidance_scale=SCALE)


def normal(key):
    return np.asarray(jax.random.normal(key, SHAPE))


def chain_of_diffusers(prompt, keys, own, index):
    """One sample by itself: (latents before the step, those after it, its density, x_0)."""
    scheduler = DDIMScheduler(**NOISE_SCHEDULE)
    scheduler.set_timesteps(STEPS)
    latents = normal(keys[STEPS])[None]
    for place, timestep in enumerate(scheduler.timesteps):
        seen = lambda text, at=latents, time=int(timestep): denoise(
            0.7, at, np.full(1, time), text[None]
        )
        output = seen(EMPTY) + SCALE * (seen(prompt) - seen(EMPTY))
        step = functools.partial(scheduler.step, tensor(output), timestep, tensor(latents), eta=1.0)
        noise = normal(own if place == index else keys[place])[None]
        following = step(variance_noise=tensor(noise)).prev_sample
        if place == index:
            mean = step(variance_noise=torch.zeros(1, *SHAPE)).prev_sample
            std = scheduler._get_variance(timestep, timestep - 1000 // STEPS) ** 0.5
            density = torch.distributions.Normal(mean, std).log_prob(following).mean()
            parted = latents[0], following.numpy()[0], density.item()
        latents = following.numpy()
    return *parted, latents[0]


@pytest.mark.parametrize("index", range(STEPS))
def test_each_chain_is_that_of_diffusers(given, index, hasty):
    prompts, keys, own = given
    last, steps = branched(*given, index)
    assert last.shape == (GROUPS, SIZE, *SHAPE) and steps.latents.shape == (GROUPS, 1, *SHAPE)
    for group in range(GROUPS):
        for sample in range(SIZE):
            expected = chain_of_diffusers(prompts[group], keys[group], own[group, sample], index)
            found = (
                steps.latents[group, 0],
                steps.following[group, 0, sample],
                steps.log_probs[group, 0, sample],
                last[group, sample],
            )
            for ours, theirs in zip(found, expected, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    # They do part, even at the last step, whose deviation is the least: 0.03.
    parted = np.abs(steps.following[:, 0, 0] - steps.following[:, 0, 1])
    assert parted.max((1, 2, 3)).min() > 0.03


@pytest.mark.parametrize(("steps", "final"), [(STEPS, False), (10, True)])
def test_steps_together_are_the_mean_over_where_a_group_may_part(steps, final):
    """The last step has no noise if it ends at an alpha of 1."""
    process = make_process(NOISE_SCHEDULE | {"set_alpha_to_one": final}, steps)
    noisy = steps - final
    assert steps_together(process) == np.mean(np.arange(noisy) + 1)
