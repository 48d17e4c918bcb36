"""Linear heads, against torch's layers, whose numbers in a published file they have."""

import jax
import numpy as np
import pytest
import torch

from diffusionrl_jax.models.towers import heads


def published(widths):
    """Linear layers with dropout between them, but before the last one, as both files have them."""
    layers = []
    for index, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        layers.append(torch.nn.Linear(inputs, outputs))
        if index < len(widths) - 3:
            layers.append(torch.nn.Dropout())
    return torch.nn.Sequential(*layers).eval()


@pytest.mark.parametrize("widths", [(768, 1024, 128, 64, 16, 1), (12, 5, 3), (12, 5, 4, 3), (4, 2)])
def test_a_stack_is_torchs(widths):
    theirs = published(widths)
    params = {"other": np.zeros(1)}
    for name, value in theirs.state_dict().items():
        number, part = name.split(".")
        layer = params.setdefault(f"layers_{number}", {})
        layer["kernel" if part == "weight" else "bias"] = value.numpy().T
    template = heads.stack_template(widths)
    shapes = jax.tree.map(lambda leaf: leaf.shape, params)
    del shapes["other"]
    assert jax.tree.map(lambda leaf: leaf.shape, template) == shapes
    inputs = np.random.default_rng(0).standard_normal((2, 3, widths[0])).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(heads.stack(params, inputs), expected, atol=2e-6)
