"""What is said before a run computes anything."""

import dataclasses

import pytest

from diffusionrl_jax.distributed.devices import Devices
from diffusionrl_jax.experiments import announcement, experiment, planning
from diffusionrl_jax.models.parameters import count

TPU = Devices(4, "TPU v5 lite", "tpu", 2**34)


@pytest.fixture(scope="module")
def made(make_config):
    config = make_config(
        **{
            "batch_size": 16,
            "algorithm.policy_gradient.timesteps_per_iteration": 2,
            "pretraining.weight": 1.0,
        }
        | {"pretraining.pictures": "emoji", "iterations": 7200, "sampler.guidance_scale": 3.0}
    )
    config, plan = planning.resolve(config)
    return experiment.build(config), plan


def test_all_that_is_to_be_known(made):
    built, plan = made
    text = announcement.announce(built, plan, "/runs/mine")
    lines = dict(line.split("  ", 1) for line in text.splitlines())
    lines = {name.strip(): value.strip() for name, value in lines.items()}
    denoiser = count(built.policy.denoiser)
    assert lines["model"] == built.config.model
    assert lines["trained"] == f"all {denoiser:,} parameters of the denoiser"
    assert lines["devices"] == "8 cpu chips"
    assert lines["plan"].startswith("fsdp 1, all samples at once: 0.")
    # A CPU's peak is not known, so no time is.
    assert lines["an iteration"] == "16 images" and lines["iterations"] == "7,200"
    where, every, size, kept = lines["checkpoints"].replace(";", ",").split(", ")
    assert (where, every) == ("/runs/mine/checkpoints", "every 1 iterations")
    # Parameters, two moments and the average, float32, and some counters.
    number, unit, _ = size.split()
    assert unit == "MB" and float(number) == pytest.approx(16 * denoiser / 1e6, abs=0.06)
    assert kept == "the last 2 and the best 1 are kept"


def test_the_least_seconds_are_those_of_the_operations(made):
    built, plan = made
    # 16 images of 3 steps, and 3 times as much for 2 steps and the 16 pictures; 2 passes each.
    once = announcement.iteration_operations(built) / (2 * (16 * 3 + 3 * (16 * 2 + 16)))
    changed = dataclasses.replace(plan, devices=TPU)
    seconds = 2 * 192 * once / 4 / 197e12
    text = announcement.announce(built, changed, "/runs/mine")
    assert f"16 images, at least {seconds:.3g} s (model: operations at peak)" in text
    assert f"7,200, at least {2 * seconds:.3g} hours (model: operations at peak)" in text
    assert "pictures" not in text
    unknown = dataclasses.replace(plan, devices=dataclasses.replace(TPU, kind="TPU v99"))
    text = announcement.announce(built, unknown, "/runs/mine")
    assert "16 images (how fast a TPU v99 is at most is not known)" in text


def test_with_lora_most_of_the_parameters_gradients_are_left_out(made):
    """A bound must not be above what is computed: of the kernels few may have factors."""
    built, _ = made
    config = built.config.copy_and_resolve_references()
    config.lora.rank = 4
    count = announcement.iteration_operations
    ratio = count(dataclasses.replace(built, config=config)) / count(built)
    assert ratio == pytest.approx((16 * 3 + 2 * (16 * 2 + 16)) / (16 * 3 + 3 * (16 * 2 + 16)))


def test_operations_are_of_as_many_tokens_as_the_sampler_reads(made, make_config):
    built, _ = made
    config = make_config(model="black-forest-labs/FLUX.1-dev")
    operations = []
    for config.sampler.text_tokens in (0, 512, 96):
        changed = dataclasses.replace(built, config=config)
        operations.append(announcement.iteration_operations(changed))
    assert operations[0] == operations[1] > operations[2]


def test_pairs_are_learned_from_without_guidance(made):
    """They are not drawn; the pretraining loss beside them sees both texts."""
    built, _ = made
    config = built.config.copy_and_resolve_references()
    once = announcement.iteration_operations(built) / (2 * (16 * 3 + 3 * (16 * 2 + 16)))
    config.algorithm.name = "dpo_offline"
    # A forward pass of the base model, and an update.
    passes = {0.0: 16 * (1 + 3), 1.0: 16 * (1 + 3) + 2 * 16 * 3}
    for config.pretraining.weight, number in passes.items():
        changed = dataclasses.replace(built, config=config)
        assert announcement.iteration_operations(changed) == pytest.approx(number * once)


def test_pictures_that_are_drawn_first_are_told_of(made):
    built, plan = made
    config = built.config.copy_and_resolve_references()
    config.pretraining.pictures = "base:64"
    changed = dataclasses.replace(plan, devices=TPU)
    text = announcement.announce(dataclasses.replace(built, config=config), changed, "/runs/mine")
    once = announcement.iteration_operations(built) / 192
    seconds = 64 * 3 * once / 4 / 197e12
    expected = f"64 of the model's own, drawn first unless they are here, at least {seconds:.3g} s"
    assert expected in text
