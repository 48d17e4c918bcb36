"""What is timed of convolutions: all sides compute the same, of each that the UNet has."""

import convolutions
import jax
import numpy as np
import pytest


def channels_last(name, each, value):
    """A side's result in JAX's layout: of PyTorch's three gradients, the one that was asked for."""
    if isinstance(value, tuple):
        value = next(part for part in value if part is not None)
    value = np.asarray(value)
    if "PyTorch" in name or "first" in name:
        value = value.transpose((2, 3, 1, 0) if each == "by kernel" else (0, 2, 3, 1))
    return value


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(6, 3, 5, 3, 1), (6, 3, 5, 3, 2), (6, 3, 5, 1, 1)])
def test_all_sides_compute_the_same(shape):
    of_side = convolutions.sides(shape, images=2)
    for each in convolutions.PASSES:
        found = {
            name: channels_last(name, each, passes[each]())
            for name, passes in of_side.items()
            if each in passes
        }
        for value in found.values():
            np.testing.assert_allclose(value, found["PyTorch"], rtol=1e-4, atol=1e-4)


def test_the_unet_has_convolutions_at_both_of_its_sizes():
    _, params, loss, arguments = convolutions.unet_of(1)
    counted = convolutions.convolutions(loss, params, arguments)
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4]
    assert counted.total() == len(kernels)
    assert {shape[0] for shape in counted} == {8, 4}
