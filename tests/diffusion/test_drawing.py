"""Latents drawn from prompts, against diffusers' chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusionrl_jax.diffusion.drawing import draw_latents
from diffusionrl_jax.diffusion.process import make_process
from diffusionrl_jax.diffusion.rollout import noise_keys
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.models.folders.published import NOISE_SCHEDULE
from tests.algorithms.toy import Toy

STEPS, SCALE = 3, 3.0
PARAMS = {"denoiser": {"level": jnp.float32(0.3), "slope": jnp.float32(0.2)}, "text_encoder": {}}


@pytest.fixture(scope="module")
def draw():
    """A function of (ids, indices)."""
    model, process = Toy(), make_process(NOISE_SCHEDULE, STEPS)

    def latents(ids, indices):
        return draw_latents(
            *(model, process, make_mesh(2), PARAMS, ids, model.tokenize([""])[0], indices, 5),
            eta=0.0,
            guidance_scale=SCALE,
        )

    return jax.jit(latents)


def test_the_chain_is_that_of_diffusers(draw):
    model, scheduler = Toy(), DDIMScheduler(**NOISE_SCHEDULE)
    ids, indices = model.tokenize(["a cat", "an apple", "a fox"]), jnp.array([4, 9, 5])
    found = draw(ids, indices)
    scheduler.set_timesteps(STEPS)
    denoise = jax.jit(model.denoise)
    keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(5), index))(indices)
    normal = jax.vmap(lambda key: jax.random.normal(key, model.latent_shape))
    current = np.array(normal(noise_keys(keys, STEPS)[:, STEPS]))
    prompted, empty = (model.encode_text({}, each) for each in (ids, 0 * ids))
    for timestep in scheduler.timesteps:
        conditional, unconditional = (
            denoise(PARAMS["denoiser"], current, jnp.full(3, int(timestep)), text)
            for text in (prompted, empty)
        )
        guided = unconditional + SCALE * (conditional - unconditional)
        output = torch.from_numpy(np.array(guided))
        current = scheduler.step(output, timestep, torch.from_numpy(current)).prev_sample.numpy()
    np.testing.assert_allclose(found, current, atol=1e-4)


def test_each_image_depends_on_its_own_index_alone(draw):
    ids = Toy().tokenize(["a cat"] * 3)
    some, others = draw(ids, jnp.array([7, 1, 7])), draw(ids, jnp.array([2, 7, 3]))
    np.testing.assert_array_equal(some[0], some[2])
    np.testing.assert_array_equal(some[0], others[1])
    apart = [some[0], some[1], others[0], others[2]]
    assert len({array.tobytes() for array in map(np.asarray, apart)}) == 4
