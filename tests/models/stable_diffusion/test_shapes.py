"""Networks without weights have the shapes of those with weights."""

import jax
import jax.numpy as jnp
import pytest

from diffusionrl_jax.models.folders import published
from diffusionrl_jax.models.parameters import count
from diffusionrl_jax.models.stable_diffusion.folder import load_stable_diffusion
from diffusionrl_jax.models.stable_diffusion.shapes import stable_diffusion_shapes


@pytest.mark.parametrize(
    "kind", [pytest.param("tiny_model", marks=pytest.mark.slow), "tiny_xl_model"]
)
def test_a_folder_has_the_shapes_that_are_loaded(kind, request):
    folder = request.getfixturevalue(kind)
    model, shapes = stable_diffusion_shapes(folder, jnp.bfloat16, size=(24, 20))
    _, params = load_stable_diffusion(folder)
    of = lambda tree: jax.tree.map(lambda leaf: leaf.shape, dict(tree))
    assert of(shapes) == of(params)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))
    assert (model.dtype, model.image_shape) == (jnp.bfloat16, (24, 20, 3))
    assert model.tokenize(["a cat"]).shape[-1] == (32 if kind == "tiny_xl_model" else 16)


@pytest.mark.slow
@pytest.mark.parametrize("name", published.HUB_IDS)
def test_published_models_have_pytorchs_sizes(name):
    """`published.PARAMETERS` is compared with PyTorch's classes where it stands."""
    model, shapes = stable_diffusion_shapes(name)
    for part, size in published.PARAMETERS[name].items():
        assert count(shapes[part]) == size
    side = 128 if name == "sdxl" else 64
    assert model.latent_shape == (4, side, side)
    assert model.tokenize(["a cat"]).shape[-1] == (2 * 77 if name == "sdxl" else 77)
