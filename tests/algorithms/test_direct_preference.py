"""Online preference against PyTorch's automatic derivatives and a plain loop over the groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from diffusionrl_jax.algorithms.direct_preference import DirectPreference
from diffusionrl_jax.learning.iteration import Frozen, Samples
from diffusionrl_jax.learning.objectives import Scored
from tests.algorithms.test_forward_process import (
    derivative,
    example,
    numbers,
    objective,
    target_of,
)

__all__ = ["numbers"]


@pytest.mark.parametrize("prediction_type", ["epsilon", "flow"])
def test_dpo_is_the_papers(numbers, prediction_type):
    """-log sigmoid(-beta / 2 (model's difference - reference's)), as diffusers' script has it."""
    made = objective(DirectPreference, prediction_type, beta=20.0)
    shown = example(made, numbers)
    # Two pairs, and two places that have none.
    shown.own["group"] = np.array([0, 0, 2, 3, 3, 5])
    shown.own["sign"] = np.array([1, -1, 0, 1, -1, 0], np.float32)
    value, gradient = derivative(made, numbers.output, shown)
    tensors = {name: torch.from_numpy(array) for name, array in vars(numbers).items()}
    output = tensors["output"].requires_grad_()
    target = target_of(tensors, prediction_type)
    error = lambda one: ((one - target) ** 2).mean((1, 2, 3))
    best, worst = [0, 3], [1, 4]
    difference = error(output)[best] - error(output)[worst]
    reference = error(tensors["base"])[best] - error(tensors["base"])[worst]
    # Each of two samples has its pair's loss.
    total = -2 * torch.nn.functional.logsigmoid(-10.0 * (difference - reference)).sum()
    total.backward()
    np.testing.assert_allclose(value, total.item(), rtol=1e-4)
    np.testing.assert_allclose(gradient, output.grad.numpy(), atol=1e-5)


def pairs_of(advantages, valid, size, offset):
    """Sample, number of the pair and sign of each place, by a loop; None where there is no pair."""
    found = []
    for first in range(0, len(advantages), size):
        members = [place for place in range(first, first + size) if valid[place]]
        ranked = sorted(members, key=lambda place: advantages[place])
        for place in range(first, first + size // 2 * 2, 2):
            pair = offset + place
            if not members or advantages[ranked[0]] == advantages[ranked[-1]]:
                found += [None, None]
            else:
                found += [(ranked[-1], pair, 1), (ranked[0], pair, -1)]
        found += [None] * (size % 2)
    return found


def test_pairs_take_the_place_of_their_group():
    """Of an even and an odd size; one group has one valid sample, one has none, one has equals."""
    rng = np.random.default_rng(0)
    made = objective(DirectPreference, weights=(1.0, 1.0), group_sizes=(4, 3))
    advantages = rng.standard_normal((2, 12)).astype(np.float32)
    rewards = advantages.copy()
    rewards[0, [0, 4, 5, 6, 8, 9, 10, 11]] = np.nan
    rewards[1, 0] = np.inf
    advantages[1, 3:6] = 0.25
    latents = rng.standard_normal((2, 12, 2, 2, 3)).astype(np.float32)
    samples = Samples(None, None, None, jnp.asarray(latents), keeps_latents=True)
    scored = Scored(samples, advantages, rewards, 0, None, None, None, {}, (0, 1))
    learned, own = jax.jit(lambda: made.learned_from(scored))()
    for task, size in enumerate((4, 3)):
        expected = pairs_of(advantages[task], np.isfinite(rewards[task]), size, 12 * task)
        assert sum(place is not None for place in expected) == (4, 6)[task]
        for place, wanted in enumerate(expected):
            if wanted is None:
                assert own["sign"][task, place] == 0
                continue
            sample, pair, sign = wanted
            np.testing.assert_array_equal(learned[task, place], latents[task, sample])
            assert (own["group"][task, place], own["sign"][task, place]) == (pair, sign)


def test_each_pair_has_noise_of_its_own():
    """Both of a pair the same, and all pairs of a group another."""
    made = objective(DirectPreference, group_sizes=(4,))
    advantages = rewards = jnp.arange(16.0)[None]
    samples = Samples(None, None, None, jnp.zeros((1, 16, 2, 2, 3)), keeps_latents=True)
    frozen = Frozen({}, {}, (), None, {})
    scored = Scored(samples, advantages, rewards, 0, None, frozen, None, {}, (0,))
    predict = lambda denoiser, examples, text, output: examples.latents
    examples, _ = made.examples(None, scored, predict)
    (noise,) = np.asarray(examples.own["target"])
    np.testing.assert_array_equal(noise[::2], noise[1::2])
    assert len(np.unique(noise[::2, 0, 0, 0])) == 8
    np.testing.assert_array_equal(examples.times[:, ::2], examples.times[:, 1::2])
    np.testing.assert_array_equal(np.abs(examples.own["sign"]), 1)
