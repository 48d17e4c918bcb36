"""Any number of images, in batches, against one drawing of each by its index."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusionrl_jax.diffusion import sampler as samplers
from diffusionrl_jax.diffusion.drawing import draw_latents
from diffusionrl_jax.diffusion.pipeline import Policy
from diffusionrl_jax.diffusion.process import make_process
from diffusionrl_jax.diffusion.sampler import Sampler
from diffusionrl_jax.distributed.mesh import make_mesh
from tests.algorithms.toy import Toy

SEED, FIRST = 3, 100
SETTINGS = {"eta": 1.0, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def policy():
    model = Toy()
    params = {"denoiser": {"level": jnp.float32(0.3), "slope": jnp.float32(0.2)}}
    params |= {"text_encoder": {}, "vae": {}}
    return Policy(model, make_process(model.scheduler_config, 2), params, make_mesh())


@pytest.fixture(scope="module")
def expected(policy):
    """The images of twenty prompts at once."""
    prompts = [f"prompt {number}" for number in range(20)]
    latents = jax.jit(
        lambda ids: draw_latents(
            *(policy.model, policy.process, policy.mesh, policy.params, ids, policy.empty_ids),
            *(FIRST + jnp.arange(20), SEED),
            **SETTINGS,
        )
    )(policy.model.tokenize(prompts))
    return prompts, jax.nn.sigmoid(latents)


def test_images_do_not_depend_on_the_batches(policy, expected):
    prompts, images = expected
    sampler = Sampler(policy, ConfigDict(SETTINGS), batch=13, decode=1)
    assert sampler.batch == 16, "a multiple of the eight devices"
    for count in (20, 3):
        found = sampler(policy.params, prompts[:count], SEED, FIRST)
        np.testing.assert_allclose(found, images[:count], atol=1e-6)
    later = sampler(policy.params, prompts[5:7], SEED, FIRST + 5)
    np.testing.assert_allclose(later, images[5:7], atol=1e-6)
    none = sampler(policy.params, [], SEED)
    assert (none.shape, none.dtype) == ((0, *policy.model.image_shape), np.float32)


def test_no_device_holds_the_images_of_others(policy, expected, monkeypatch):
    """On a pod they would not fit."""
    prompts, images = expected
    drawn = []
    monkeypatch.setattr(samplers, "gather_rows", lambda array: drawn.append(array) or array)
    Sampler(policy, ConfigDict(SETTINGS), batch=16)(policy.params, prompts[:16], SEED, FIRST)
    held = [shard.data.shape[0] for shard in drawn[0].addressable_shards]
    assert held == [2] * 8
    np.testing.assert_allclose(drawn[0], images[:16], atol=1e-6)
