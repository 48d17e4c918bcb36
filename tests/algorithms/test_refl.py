"""The loss of guesses late in the chain against PyTorch and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from diffusionrl_jax.algorithms import refl
from tests.algorithms import toy


def test_the_cost_is_the_papers():
    """1e-3 * relu(2 - reward), as the released code has it, times the reward's own gradient."""
    made = toy.method(toy.make("refl").config)
    rewards = np.array([[-1.0, 1.5, 2.5, 0.0]], np.float32)
    gradients = np.random.default_rng(0).standard_normal((1, 4, 2, 2, 3)).astype(np.float32)
    reward = torch.from_numpy(rewards).requires_grad_()
    cost = torch.nn.functional.relu(-reward + 2) * 1e-3
    cost.sum().backward()
    np.testing.assert_allclose(made.cost(rewards), cost.detach().numpy(), rtol=1e-6)
    found = made.towards(jnp.asarray(rewards), jnp.asarray(gradients))
    expected = -reward.grad.numpy()[..., None, None, None] * gradients
    np.testing.assert_allclose(found["direction"], expected, rtol=1e-6)


def test_a_guess_late_in_the_chain_is_rewarded(hasty):
    """By central differences of the reward of the guesses, whose error is below a thousandth."""
    made = toy.make("refl", **{"algorithm.refl.scale": 1.0, "batch_size": 32})
    phases, params, frozen = made.algorithm.phases(), made.state.params, made.frozen
    samples = jax.jit(phases.sample)(params, frozen, made.batch.input_ids, 0)
    rewards = jnp.zeros((1, 32))
    arguments = params, frozen, samples.trained_on(), rewards, made.batch, 0, {}
    prepared = jax.jit(phases.prepare)(*arguments)
    example = jax.tree.map(lambda leaf: leaf[0], prepared.examples)
    text = jax.tree.map(lambda leaf: leaf[0], prepared.text)
    model, process = made.algorithm.experience.model, made.algorithm.experience.process
    assert {*np.asarray(example.times)} == {*np.asarray(process.times[2:])}
    np.testing.assert_array_equal(example.latents, samples.steps.latents[0, :, 0])

    @jax.jit
    def cost(params):
        output = model.denoise(params, example.latents, example.times, text[:, 0])
        guess = process.clean(output, example.latents, example.times)
        return 2 - model.decode({}, guess).mean((1, 2, 3))

    loss = jax.jit(jax.value_and_grad(made.algorithm.loss, has_aux=True))
    (value, metrics), gradient = loss(params, None, example, text)
    np.testing.assert_allclose(value, cost(params).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["reward_of_guess"], 2 - value, rtol=1e-6)
    for name in params:
        higher, lower = (
            np.asarray(cost(params | {name: params[name] + sign * 0.01}), np.float64).mean()
            for sign in (1, -1)
        )
        np.testing.assert_allclose(gradient[name], (higher - lower) / 0.02, rtol=2e-3)


def test_refuses_more_late_steps_than_there_are():
    config = toy.make("refl").config
    config.algorithm.refl.late_steps = 5
    with pytest.raises(ValueError, match="refl.late_steps=5 must be between 1 and"):
        refl.check(config)
