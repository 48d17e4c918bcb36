"""The probe is compared with PyTorch's KL of normal distributions, and with diffusers' chain."""

import diffusers
import jax
import numpy as np
import pytest
import torch

from diffusionrl_jax.evaluation import probe
from diffusionrl_jax.experiments.loading import load_policy

PROMPTS = ["a cat", "a dog next to a cup", "a tree", "a car", "a cow", "a pig", "a fox", "an owl"]


@pytest.fixture(scope="module")
def policy(make_config, compilation_cache):
    return load_policy(make_config())


@pytest.fixture(scope="module")
def made(policy, make_config):
    return probe.Probe(policy, make_config().sampler, PROMPTS)


@pytest.fixture(scope="module")
def changed(policy):
    """The parameters with a denoiser that predicts 1.5 times as much."""
    denoiser = dict(policy.denoiser)
    denoiser["conv_out"] = jax.tree.map(lambda leaf: 1.5 * leaf, denoiser["conv_out"])
    return policy.with_denoiser(denoiser)


def test_the_base_model_is_itself(made, policy):
    assert made(policy.params) == {"kl_to_base": 0.0, "noise_length": 1.0}


def test_the_length_of_the_noise(made, changed, policy):
    # Of networks that predict noise: 1.5 times the output is 1.5 times the noise.
    assert policy.model.scheduler_config["prediction_type"] == "epsilon"
    assert made(changed)["noise_length"] == pytest.approx(1.5, rel=1e-4)


@pytest.mark.slow
def test_the_divergence_is_that_of_diffusers_steps(made, changed, policy):
    ids, empty = policy.model.tokenize(PROMPTS), policy.empty_ids
    text = policy.model.encode_text(policy.params["text_encoder"], ids)
    scheduler = diffusers.DDIMScheduler.from_config(dict(policy.model.scheduler_config))
    scheduler.set_timesteps(3)
    found = []
    for index, latents, step, _ in made._states:
        time = int(scheduler.timesteps[index])
        means = []
        for params in (policy.params, changed):
            denoiser = params[policy.model.denoiser_name]
            times = np.full(len(PROMPTS), time)
            output = policy.model.denoise(denoiser, latents, times, text)
            arrays = (torch.tensor(np.asarray(array)) for array in (output, latents))
            output, sample = arrays
            zeros = torch.zeros_like(sample)
            means.append(
                scheduler.step(output, time, sample, eta=1.0, variance_noise=zeros).prev_sample
            )
        previous = time - 1000 // 3
        std = scheduler._get_variance(time, previous) ** 0.5
        np.testing.assert_allclose(np.asarray(step.mean), means[0], atol=1e-4)
        normals = [torch.distributions.Normal(mean, std) for mean in means]
        found.append(torch.distributions.kl_divergence(*normals).mean())
    assert empty.ndim == 1 and len(found) == policy.process.stochastic_steps
    # Rounding of float32 in means, whose difference is squared.
    assert made(changed)["kl_to_base"] == pytest.approx(float(np.mean(found)), rel=1e-3)


def test_chains_without_noise_have_no_divergence(policy, changed, make_config):
    sampler = make_config(**{"sampler.eta": 0.0}).sampler
    assert set(probe.Probe(policy, sampler, PROMPTS)(changed)) == {"noise_length"}


@pytest.mark.parametrize(
    ("devices", "per_device", "expected"),
    [(1, 0, 8), (1, 2, 2), (4, 0, 8), (8, 16, 8), (256, 0, 256), (256, 4, 256)],
)
def test_there_is_a_chain_for_each_device(devices, per_device, expected):
    assert probe.chains(devices, per_device) == expected
