"""Whole runs of one iteration."""

import jax
import pytest

from diffusionrl_jax.data.emoji import world
from diffusionrl_jax.emoji_world import emoji_model
from diffusionrl_jax.models.stable_diffusion.build import init_stable_diffusion
from diffusionrl_jax.models.stable_diffusion.folder import save_stable_diffusion
from diffusionrl_jax.monitoring.metrics import read_rows
from diffusionrl_jax.training.loop import train


@pytest.mark.slow
def test_a_size_that_the_unet_does_not_halve(
    tiny_networks, make_config, compilation_cache, tmp_path, monkeypatch
):
    """Latents of 9 by 11 and a UNet of two levels, with pretraining pictures of the same size."""
    monkeypatch.setattr(world, "SPLITS", {"train": 12})
    two_levels = {
        "block_out_channels": [32, 32],
        "down_block_types": ["DownBlock2D"] * 2,
        "up_block_types": ["UpBlock2D"] * 2,
    }
    networks = tiny_networks | {"unet": tiny_networks["unet"] | two_levels}
    tokenizer = emoji_model.train_tokenizer()
    model, params = init_stable_diffusion(networks, jax.random.key(0), tokenizer)
    save_stable_diffusion(tmp_path / "model", model, params)
    config = make_config(
        model=str(tmp_path / "model"),
        iterations=1,
        convolution="taps",
        remat="full",
        **{
            "sampler.height": 18,
            "sampler.width": 22,
            "pretraining.weight": 1.0,
            "pretraining.pictures": "emoji",
        },
    )
    with config.unlocked():
        config.evaluation.sets, config.evaluation.best = {}, {}
    train(config, str(tmp_path / "run"))
    _, row = read_rows(str(tmp_path / "run"))
    # The update computes the log-probabilities of the chain that was drawn again.
    assert row["ratio_check/max"] < 1e-4
