"""The weighted denoising loss against PyTorch diffusers' noise and closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusionrl_jax.algorithms.reward_weighted import RewardWeighted
from diffusionrl_jax.diffusion.ddim import make_ddim
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.experiments import checks, planning
from diffusionrl_jax.experiments import experiment as experiments
from diffusionrl_jax.learning.execution import make_train_step
from diffusionrl_jax.learning.iteration import Samples
from diffusionrl_jax.learning.objectives import Scored
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders.published import NOISE_SCHEDULE
from diffusionrl_jax.monitoring.progress import PhaseTimer

REWARDS = np.array([0.5, -1.0, 2.0, np.nan, 0.0, 1.5], np.float32)


def objective(prediction_type="epsilon", **changes):
    process = make_ddim(NOISE_SCHEDULE | {"prediction_type": prediction_type}, 10)
    fields = {"weights": (1.0, 0.5), "group_sizes": (3, 3), "noises": 2} | changes
    return RewardWeighted(process, seed=7, **fields)


def test_weights_are_closed_forms():
    valid = np.isfinite(REWARDS)
    scaled = np.where(valid, (REWARDS + 1) / 3, 0)
    weights = lambda **changes: objective(**changes).sample_weights(jnp.asarray(REWARDS))
    np.testing.assert_allclose(weights(), scaled, rtol=1e-6)
    shares = np.where(valid, np.exp(np.nan_to_num(REWARDS) / 0.7), 0)
    shares *= valid.sum() / shares.sum()
    np.testing.assert_allclose(weights(weighting="softmax", temperature=0.7), shares, rtol=1e-5)
    alike = objective().sample_weights(jnp.full(6, 3.25))
    np.testing.assert_array_equal(alike, 1)


@pytest.mark.parametrize(
    "prediction_type", ["epsilon", pytest.param("v_prediction", marks=pytest.mark.slow)]
)
def test_examples_are_noised_as_in_diffusers(prediction_type):
    """And each sample's noise is its own, in each update another."""
    made = objective(prediction_type)
    clean = np.random.default_rng(0).standard_normal((2, 6, 4, 8, 8)).astype(np.float32)
    rewards = jnp.asarray([REWARDS, REWARDS[::-1]])
    samples = Samples(None, None, None, jnp.asarray(clean), keeps_latents=True)
    scored = Scored(samples, None, rewards, 0, None, None, None, {}, (0, 1))
    examples, text = jax.jit(lambda scored: made.examples(None, scored, None))(scored)
    assert text is None
    np.testing.assert_array_equal(examples.text, [0, 0, 1, 1])
    np.testing.assert_array_equal(examples.weight, [1, 1, 0.5, 0.5])
    theirs = DDIMScheduler(**NOISE_SCHEDULE | {"prediction_type": prediction_type})
    target, noises = np.asarray(examples.own["target"]), []
    for update, task in enumerate(examples.text):
        times = torch.from_numpy(np.asarray(examples.times[update])).long()
        alpha = theirs.alphas_cumprod[times].reshape(-1, 1, 1, 1).numpy()
        noise = target[update]
        if prediction_type == "v_prediction":
            noise = (noise + (1 - alpha) ** 0.5 * clean[task]) / alpha**0.5
        tensors = torch.from_numpy(clean[task]), torch.from_numpy(noise)
        expected = theirs.add_noise(*tensors, times).numpy()
        np.testing.assert_allclose(examples.latents[update], expected, atol=1e-4)
        noises += list(noise.reshape(6, -1))
    correlation = np.corrcoef(np.stack(noises))
    assert np.abs(correlation - np.eye(len(noises))).max() < 0.3
    assert len(np.unique(examples.times)) > 12


def test_the_loss_is_the_weighted_error():
    rng = np.random.default_rng(1)
    output, target = rng.standard_normal((2, 6, 4, 8, 8)).astype(np.float32)
    weights = rng.random(6).astype(np.float32)
    example = dataclasses.make_dataclass("Example", ["own"])(
        {"target": target, "sample_weight": weights}
    )
    loss, _ = objective()(output[:, None], example, True)
    errors = torch.nn.functional.mse_loss(
        *map(torch.from_numpy, (output, target)), reduction="none"
    )
    np.testing.assert_allclose(loss, weights * errors.mean((1, 2, 3)).numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weighting": "worst"}, "weighting='worst' must be one of"),
        ({"temperature": 0.0}, "temperature=0.0 must be"),
        ({"noises": 0}, "noises=0 must be"),
        ({"weighting": "best"}, "group_size of task small to 2 or more"),
    ],
)
def test_refuses_what_does_not_fit(changes, message, make_config):
    changes = {f"algorithm.reward_weighted.{name}": value for name, value in changes.items()}
    changes |= {"algorithm.name": "reward_weighted", "tasks.small.group_size": 1}
    with pytest.raises(UserError, match=message):
        checks.check(make_config(**changes), make_mesh())


@pytest.mark.slow
@pytest.mark.parametrize("from_base", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_it_is_a_method_of_a_config(make_config, from_base):
    """By one flag; the base model draws, whatever has been learned, or the trained one."""
    changes = {"name": "reward_weighted", "reward_weighted.noises": 2}
    changes |= {"reward_weighted.from_base": from_base}
    config = make_config(**{f"algorithm.{name}": value for name, value in changes.items()})
    config, _ = planning.resolve(config)
    made = experiments.build(config)
    assert (made.frozen.base is not None) == from_base
    state, batch = made.init_state(), made.batch(0)
    sample = jax.jit(made.algorithm.phases().sample)
    before = sample(state.params, made.frozen, batch.input_ids, 0).latents
    step = make_train_step(made.algorithm, made.abstract_state(), "split", PhaseTimer())
    state, metrics = step(state, made.frozen, batch)
    assert metrics["loss"].shape == (2,) and metrics["sample_weight"].max() <= 1
    assert metrics["gradient_norm"].min() > 0
    after = sample(state.params, made.frozen, batch.input_ids, 0).latents
    assert np.array_equal(before, after) == from_base
