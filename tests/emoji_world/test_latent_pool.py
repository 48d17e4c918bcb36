"""What the emoji world's denoisers are trained on, of a VAE whose error is known."""

import types

import jax
import numpy as np
import pytest

from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.emoji_world import latent_pool

ERROR = 0.1


@pytest.fixture
def gallery(monkeypatch):
    """Pictures of one grey each, which take no time to draw."""

    def random_example(rng):
        colour = rng.integers(256)
        return types.SimpleNamespace(
            image=np.full((32, 32, 3), colour, np.uint8), prompt=f"colour {colour}"
        )

    monkeypatch.setattr(latent_pool.pictures, "random_example", random_example)


def test_the_pool_is_what_the_vae_makes_of_the_pictures(gallery):
    """Latents are twice the pictures' corners; each is decoded too bright by its own error."""

    def encode(params, images):
        corners = params * images[:, :8, :8].transpose(0, 3, 1, 2)
        return corners, 0 * corners + 0.5

    def decode(params, latents):
        dark = latents[:, :1, :1, :1] < params / 2
        whole = latents[:, :, :1, :1].transpose(0, 2, 3, 1).repeat(32, 1).repeat(32, 2) / params
        return whole + jax.numpy.where(dark, ERROR, 10 * ERROR)

    model = types.SimpleNamespace(encode=encode, decode=decode)
    means, stds, prompts, psnr = latent_pool.latent_pool(model, 2.0, make_mesh(), 600)
    # Whole rounds of 512 are drawn.
    assert means.shape == stds.shape == (1024, 3, 8, 8) and len(prompts) == 1024
    colours = np.array([int(prompt.split()[1]) for prompt in prompts])
    np.testing.assert_allclose(means[:, 1, 3, 4], 2 * colours / 255, rtol=1e-6)
    assert (stds == 0.5).all()
    tested = [
        example.image[0, 0, 0] for example in latent_pool.draw(latent_pool.TEST_SEED, 0, 1024)
    ]
    dark = np.mean(np.array(tested) < 255 / 4 * 2)
    # 20 dB of an error of a tenth, and none at all of an error of 1.
    of_mean = -10 * np.log10(dark * ERROR**2 + (1 - dark) * (10 * ERROR) ** 2)
    np.testing.assert_allclose(psnr, (of_mean, 20 * dark), rtol=1e-3)


def test_a_series_of_pictures_goes_on_where_it_was(gallery):
    whole = latent_pool.stack_images(latent_pool.draw(5, 0, 6))
    assert whole.dtype == np.float32 and 0 <= whole.min() and whole.max() <= 1
    parts = [latent_pool.draw(5, start, 3) for start in (0, 3)]
    np.testing.assert_array_equal(np.concatenate(list(map(latent_pool.stack_images, parts))), whole)
    assert len(np.unique(whole[:, 0, 0, 0])) > 3


def test_rows_are_drawn_with_stratified_times(hasty):
    count = 4096
    rng = np.random.default_rng(0)
    mean = rng.standard_normal((count, 4, 2, 2)).astype(np.float32)
    std = np.full_like(mean, 3)
    ids = np.arange(1, count + 1)[:, None].repeat(5, 1)
    rows = mean, std, ids
    clean, noise, spread, shown = latent_pool.draw_rows(
        rows, np.zeros(5, int), 0.25, jax.random.key(0)
    )
    encoding = (np.asarray(clean) - mean) / 3
    for drawn in (encoding, np.asarray(noise)):
        # 65,536 draws: standard errors of 0.004 and of 0.003.
        assert abs(drawn.mean()) < 0.02 and abs(drawn.std() - 1) < 0.015
    assert abs(np.corrcoef(encoding.ravel(), np.asarray(noise).ravel())[0, 1]) < 0.02
    # One time in each of as many equal parts as there are rows, to float32's rounding.
    np.testing.assert_allclose(np.asarray(spread) * count - np.arange(count), 0.5, atol=0.501)
    kept = (np.asarray(shown) == ids).all(1)
    assert ((np.asarray(shown) == 0).all(1) ^ kept).all()
    # A deviation of 0.007.
    assert abs(kept.mean() - 0.75) < 0.03
