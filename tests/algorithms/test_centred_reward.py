"""Centred reward distillation against PyTorch's automatic derivatives and a closed form."""

import numpy as np
import pytest
import torch

from diffusionrl_jax.algorithms.centred_reward import CentredReward
from tests.algorithms.test_forward_process import derivative, example, numbers, objective

__all__ = ["numbers"]


def error(output, target):
    return ((output - target) ** 2).mean((1, 2, 3))


def test_crd_is_the_papers(numbers):
    """With one sample of the second group left out, by PyTorch."""
    made = objective(CentredReward, beta=2.0, reference_weight=0.1)
    shown = example(made, numbers)
    shown.own["valid"] = np.array([True, True, True, True, False, True])
    value, gradient = derivative(made, numbers.output, shown)
    tensors = {name: torch.from_numpy(array) for name, array in vars(numbers).items()}
    output, noise = tensors["output"].requires_grad_(), tensors["noise"]
    relative = lambda off: (off**2).mean((1, 2, 3)) / off.detach().abs().mean((1, 2, 3))
    implied = relative(tensors["trailing"] - noise) - relative(output - noise)
    # Between the least factor for the worst advantage, -1, and the whole weight for the best, 1.
    factor = 1e-4 + (0.1 - 1e-4) * (tensors["advantages"] + 1) / 2
    total = (factor * error(output, tensors["base"])).sum()
    for group in ([0, 1, 2], [3, 5]):
        likeness, wanted = implied[group], (tensors["advantages"][group] + 1) / 2
        centred = 2 * (likeness - likeness.mean()) - (wanted - wanted.mean())
        total = total + 5 / 2 * (centred**2).sum()
    total.backward()
    np.testing.assert_allclose(value, total.item(), rtol=1e-4)
    np.testing.assert_allclose(gradient, output.grad.numpy(), atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_where_nothing_has_changed_it_is_advantage_weighted_matching(numbers, prediction_type):
    """The advantage less its group's mean, times the error's gradient, whatever beta is."""
    made = objective(CentredReward, prediction_type, beta=0.7)
    shown = example(made, numbers, trailing=numbers.output)
    _, gradient = derivative(made, numbers.output, shown)
    advantages = 5 * numbers.advantages.reshape(2, 3)
    centred = (advantages - advantages.mean(1, keepdims=True)).reshape(6, 1, 1, 1)
    of_error = 2 * (numbers.output - shown.own["target"]) / numbers.output[0].size
    size = np.abs(numbers.output - shown.own["target"]).mean((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(gradient, centred * of_error / size, atol=1e-6)
