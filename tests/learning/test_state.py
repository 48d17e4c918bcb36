"""The optimiser against PyTorch's AdamW, and the state before the first iteration."""

import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
import torch

from diffusionrl_jax.learning.state import TrainState, init_state, make_optimizer

CONFIG = ml_collections.ConfigDict(
    {
        "learning_rate": 1e-2,
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "weight_decay": 1e-1,
        "warmup_iterations": 0,
        "decay_iterations": 0,
        "gradient_clip": 1.0,
        "one_step": False,
    }
)


@pytest.mark.parametrize(("warmup", "decay"), [(0, 0), (3, 0), (1, 2)])
@pytest.mark.parametrize("updates_per_iteration", [1, 2])
def test_optimizer_is_adamw_of_pytorch(warmup, decay, updates_per_iteration):
    rng = np.random.default_rng(0)
    start = rng.standard_normal((3, 4)).astype(np.float32)
    changes = {"warmup_iterations": warmup, "decay_iterations": decay}
    config = ml_collections.ConfigDict(CONFIG.to_dict() | changes)
    optimizer = make_optimizer(config, updates_per_iteration)
    warmup, decay = warmup * updates_per_iteration, decay * updates_per_iteration
    update = jax.jit(optimizer.update)
    params, slots = jnp.asarray(start), optimizer.init(start)
    tensor = torch.nn.Parameter(torch.from_numpy(start.copy()))
    theirs = torch.optim.AdamW([tensor], lr=1e-2, eps=1e-8, weight_decay=1e-1)

    def factor(count):
        if count < warmup or not decay:
            return min(count / warmup, 1.0) if warmup else 1.0
        progress = min((count - warmup) / decay, 1.0)
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))

    scheduler = torch.optim.lr_scheduler.LambdaLR(theirs, factor)
    for size in (0.1, 5.0, 0.2, 3.0):  # some above the clip, some below
        gradient = size * rng.standard_normal((3, 4)).astype(np.float32)
        changes, slots = update(gradient, slots, params)
        params = optax.apply_updates(params, changes)
        tensor.grad = torch.from_numpy(gradient.copy())
        torch.nn.utils.clip_grad_norm_([tensor], 1.0)
        theirs.step()
        scheduler.step()
    np.testing.assert_allclose(params, tensor.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_one_step_takes_the_mean_gradient_of_an_iteration():
    """As PyTorch does that adds up the gradients of three backward passes before a step."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal((3, 4)).astype(np.float32)
    config = ml_collections.ConfigDict(
        CONFIG.to_dict() | {"one_step": True, "warmup_iterations": 2}
    )
    optimizer = make_optimizer(config, 3)
    update = jax.jit(optimizer.update)
    params, slots = jnp.asarray(start), optimizer.init(start)
    tensor = torch.nn.Parameter(torch.from_numpy(start.copy()))
    theirs = torch.optim.AdamW([tensor], lr=1e-2, eps=1e-8, weight_decay=1e-1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(theirs, lambda count: min(count / 2, 1.0))
    for size in (0.1, 5.0, 2.0):
        before = params
        theirs.zero_grad()
        for _ in range(3):
            np.testing.assert_array_equal(params, before)
            gradient = size * rng.standard_normal((3, 4)).astype(np.float32)
            changes, slots = update(gradient, slots, params)
            params = optax.apply_updates(params, changes)
            (tensor * torch.from_numpy(gradient)).sum().div(3).backward()
        torch.nn.utils.clip_grad_norm_([tensor], 1.0)
        theirs.step()
        scheduler.step()
        np.testing.assert_allclose(params, tensor.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_state_owns_its_parameters():
    params = {"kernel": jnp.ones(3)}
    state = init_state(params, make_optimizer(CONFIG, 1), ema_decay=0.9)
    jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)(state)
    np.testing.assert_array_equal(params["kernel"], 1)


@pytest.mark.parametrize("samples_ahead", [False, True])
@pytest.mark.parametrize("memory", [{}, {"past_rewards": (None,)}])
def test_only_runs_that_need_more_state_have_it(samples_ahead, memory):
    """A field that is None would be in every checkpoint, and earlier ones could not be opened."""
    params = {"kernel": jnp.ones(3)}
    state = init_state(params, make_optimizer(CONFIG, 1), 0.9, memory, samples_ahead)
    expected = {"step", "params", "optimizer_state", "ema_params"}
    expected |= {"sampling_params"} if samples_ahead else set()
    expected |= memory.keys()
    assert state.saved().keys() == expected
    assert state.samples_ahead == samples_ahead
    assert same(TrainState.of_saved(state.saved()), state)


def same(state, other):
    return jax.tree.all(jax.tree.map(np.array_equal, state, other))


def test_pictures_are_drawn_with_the_average_where_there_is_one():
    params = {"kernel": jnp.ones(3)}
    with_average = init_state(params, make_optimizer(CONFIG, 1), ema_decay=0.9)
    assert with_average.evaluation_params is with_average.ema_params
    without = init_state(params, make_optimizer(CONFIG, 1), ema_decay=0)
    assert without.ema_params is None
    assert without.evaluation_params is without.params
