"""Networks without weights have the shapes of those with them."""

import jax
import numpy as np
import pytest

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.mmdit import published
from diffusionrl_jax.models.mmdit.folder import load_mmdit
from diffusionrl_jax.models.mmdit.shapes import mmdit_shapes
from diffusionrl_jax.models.parameters import count
from tests.models.mmdit.test_description import FLUX, MEDIUM


def test_shapes_of_a_folder_are_those_of_its_weights(make_folder):
    folder, size = str(make_folder()), (24, 16)
    (whole, params), (model, shapes) = (
        make(folder, size=size) for make in (load_mmdit, mmdit_shapes)
    )
    described = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), dict(tree))
    assert described(shapes) == described(params)
    assert model.latent_shape == whole.latent_shape and model.networks == whole.networks
    np.testing.assert_array_equal(model.tokenize(["a cat"]), whole.tokenize(["a cat"]))
    # Places are of zeros, and of the same shape.
    assert model.transformer.positions.shape == whole.transformer.positions.shape
    assert not model.transformer.positions.any() and whole.transformer.positions.any()
    with pytest.raises(UserError, match="8 x 4 patches is larger .* 6 x 6"):
        mmdit_shapes(folder, size=(32, 16))


@pytest.mark.slow
@pytest.mark.parametrize("name", [MEDIUM, FLUX])
def test_published_transformers_have_their_published_sizes(name):
    """Without a folder, and in the memory of one number for a table of 57 million."""
    model, shapes = mmdit_shapes(name, size=(512, 256))
    assert count(shapes["transformer"]) == published.PARAMETERS[name]["transformer"]
    assert model.latent_shape == (16, 64, 32)
    if name == MEDIUM:
        assert model.position_table.size > 5e7 and set(model.position_table.strides) == {0}
    # CLIP reads 77 tokens, of which FLUX keeps none, and T5 the pipeline's own number.
    assert model.tokenize(["a cat"]).shape == (1, 77 + 512 if name == FLUX else 77 + 77 + 256)
