"""What whole runs do, and what they say of themselves."""

import contextlib
import json

import jax
import pytest
from absl import logging

from configs import hps
from diffusionrl_jax.data.emoji import world
from diffusionrl_jax.distributed.devices import Devices
from diffusionrl_jax.emoji_world import emoji_model
from diffusionrl_jax.experiments import fetching, planning
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.stable_diffusion.build import init_stable_diffusion
from diffusionrl_jax.models.stable_diffusion.folder import save_stable_diffusion
from diffusionrl_jax.monitoring.metrics import read_rows
from diffusionrl_jax.runs import trained
from diffusionrl_jax.training.loop import train
from tests.monitoring.test_trace import iterations_in


def test_what_cannot_fit_is_refused_before_anything_is_fetched(monkeypatch, tmp_path):
    """Sizes of published models are known without their files."""
    one = Devices(jax.device_count(), "TPU v5 lite", "tpu", 2**30)
    monkeypatch.setattr(planning, "devices_here", lambda: one)
    monkeypatch.setattr(fetching, "bring", lambda config: pytest.fail("fetched"))
    with pytest.raises(UserError, match="stable-diffusion-2-base .* does not fit"):
        train(hps.get_config(), str(tmp_path))


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


@pytest.mark.slow
def test_a_resumed_run_traces_what_is_left_and_compares_no_other_scores(
    make_config, compilation_cache, monkeypatch, tmp_path
):
    """Iteration 1 was traced before, and 2 and 3 are later, with another evaluation."""
    said, wanted = [], range(1, 4)
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    train(make_config(iterations=1), str(tmp_path), wanted)
    assert iterations_in(tmp_path) == [1]
    assert not [text for text in said if "config.evaluation" in text]
    changes = {"iterations": 3, "evaluation.best": {"pairs/size": -1000.0}}
    for _ in range(2):
        assert train(make_config(**changes), str(tmp_path), wanted)
        assert iterations_in(tmp_path) == [1, 2, 3]
        assert [text for text in said if "[1] have scores by another config.evaluation" in text]
    config = trained.read_config(str(tmp_path))
    with contextlib.closing(trained.open_checkpoints(str(tmp_path), config)) as checkpoints:
        assert checkpoints.best_step() in (2, 3) and checkpoints.steps() == (1, 2, 3)


@pytest.mark.slow
def test_small_gradients_are_warned_of_once(make_config, monkeypatch, tmp_path):
    """With an epsilon that is larger than any gradient, in three iterations of two evaluations."""
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    train(make_config(**{"optimizer.epsilon": 1.0}), str(tmp_path))
    warned = [text for text in said if "root mean square" in text]
    assert len(warned) == 1 and "below config.optimizer.epsilon=1.0e+00" in warned[0]
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    found = [line["gradient_rms"] for line in lines if "gradient_rms" in line]
    assert len(found) == 3 and 0 < max(found) < 1
