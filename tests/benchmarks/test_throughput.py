"""The throughput command's own side at a toy size."""

import json
from pathlib import Path

import jax
import pytest

from diffusionrl_jax.emoji_world import emoji_model
from diffusionrl_jax.models.stable_diffusion.build import init_stable_diffusion

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def throughput(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import throughput

    return throughput


@pytest.mark.slow
def test_ours_does_the_work_it_states(throughput):
    work = throughput.Work(images=4, steps=3, train_timesteps=2, guidance_scale=5.0)
    tokenizer = emoji_model.train_tokenizer()
    configs = emoji_model.configs(tokenizer, scaling_factor=1.0)
    configs["unet"] = configs["unet"] | {
        "block_out_channels": [32],
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "sample_size": 4,
    }
    configs["vae"] = configs["vae"] | {
        "block_out_channels": [8],
        "down_block_types": ["DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"],
    }
    model, params = init_stable_diffusion(configs, jax.random.key(0), tokenizer)
    ours = throughput.Ours(model, params, work, throughput.emoji_prompts(4), jax.devices()[:2])
    measured = throughput.measure({"ours": ours.iterate}, rounds=1, pause=0.0)
    throughput.check_work(work, measured)
    first, second = measured["ours"]
    assert first["optimizer_steps"] == second["optimizer_steps"] == 2
    assert 0 < second["sampling"] + second["training"] <= second["iteration"]
    assert 0 < second["reward"] < 1 and second["reward"] != first["reward"]


def test_table_has_rates_and_the_median_ratio(throughput):
    work = throughput.Work(images=10, steps=3, train_timesteps=1, guidance_scale=5.0)
    times = lambda s: {"sampling": s, "training": s, "iteration": 2 * s, "reward": 0.5}
    measured = {
        "ours": [times(50), times(1), times(2), times(1)],
        "TRL": [times(60), times(2), times(2), times(5)],
    }
    rows = throughput.table(work, measured).splitlines()
    assert rows[2] == "| sampling | 10.00 | 5.00 | 2.00 (1.00 to 5.00) |"
    assert rows[4] == "| iteration | 5.00 | 2.50 | 2.00 (1.00 to 5.00) |"
    assert rows[5] == "| first iteration, with compilation | 100.0 s | 120.0 s | |"


def test_other_work_is_refused(throughput):
    work = throughput.Work(images=128, steps=3, train_timesteps=4, guidance_scale=5.0)
    with pytest.raises(AssertionError, match="TRL: trained is 512, not 1024"):
        throughput.check_work(work, {"TRL": [{"trained": 512}]})
    with pytest.raises(ValueError, match="multiple of 256"):
        work.rival_settings("", [], sample_batch=64, train_batch=64, threads=2)
    assert work.rival_settings("", [], 64, 16, 2)["accumulation"] == 2
    with pytest.raises(ValueError, match="guidance_scale must not be 1"):
        throughput.Work(images=1, steps=1, train_timesteps=1, guidance_scale=1.0)


def test_settings_are_json(throughput):
    work = throughput.Work(images=8, steps=3, train_timesteps=2, guidance_scale=5.0)
    assert json.loads(json.dumps(work.rival_settings("m", ["a"], 4, 4, 2)))["model"] == "m"
