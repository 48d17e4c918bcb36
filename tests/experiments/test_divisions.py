"""Which divisions of an experiment are the best."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from configs import common, emoji_flow, emoji_policy_gradient, hps, joint
from diffusionrl_jax.distributed.mesh import BATCH_AXES, parameter_sharding
from diffusionrl_jax.experiments import divisions, memory, planning
from diffusionrl_jax.models.families import model_shapes
from tests.experiments.test_planning import GIB, XL, devices


@pytest.mark.parametrize(("chips", "split"), [(1, 1), (8, 8), (16, 16), (256, 16)])
def test_more_chips_than_sixteen_share_no_more(chips, split):
    assert divisions.usual_split(chips) == split


@pytest.mark.parametrize(("chips", "split"), [(3, 1), (6, 2), (12, 4), (24, 8), (56, 8), (96, 16)])
def test_parameters_are_split_into_a_power_of_two(chips, split):
    assert divisions.usual_split(chips) == split


@pytest.mark.parametrize(("chips", "slices", "split"), [(16, 2, 8), (24, 3, 8), (256, 2, 16)])
def test_parameters_are_split_within_a_slice(chips, slices, split):
    assert divisions.usual_split(chips, slices) == split
    several = dataclasses.replace(devices(chips), slices=slices)
    sizes = memory.sizes(hps.get_config(), kernel=True)
    first, *more = divisions._splits(hps.get_config(), sizes, several)
    assert first == split and all(size > split for size in more)


@pytest.mark.parametrize("chips", [12, pytest.param(24, marks=pytest.mark.slow)])
def test_chips_hold_what_the_model_of_memory_says(chips):
    """Of Stable Diffusion 2's own shapes, which no twelfth and hardly any third divides."""
    config = hps.get_config()
    config.batch_size = config.evaluation.sets.hps.images = 1920
    sizes = memory.sizes(config, kernel=True)
    _, networks = model_shapes(config.model, dtype=jnp.bfloat16)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), networks["unet"]
    )
    division = planning.choose(config, devices(chips)).division
    mesh = AbstractMesh((chips // division.fsdp, division.fsdp), BATCH_AXES)
    parts = jax.tree.map(
        lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)),
        *(shapes, parameter_sharding(mesh, shapes)),
    )
    # Small parameters, a few percent of a part, are whole.
    held = sum(jax.tree.leaves(parts))
    assert held == pytest.approx(sizes.model.denoiser / division.fsdp, rel=0.06)


def test_no_more_parts_than_widths_divide_into():
    """Stable Diffusion's are 320, 640 and 1,280."""
    config = hps.get_config(XL)
    splits = divisions._splits(config, memory.sizes(config, kernel=True), devices(768, 10 * GIB))
    assert splits == [16, 32, 64, 128]


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
def test_the_emoji_world_is_computed_in_small_pieces_on_cpus(count):
    """20 samples are drawn and trained on at a time, and all else is done at once."""
    config, _ = planning.resolve(emoji_policy_gradient.get_config(), devices(count, 4 * GIB, "cpu"))
    share = 320 // count
    assert config.microbatch.sample == 20 and 3 * share % 20 == 0
    assert config.microbatch.decode >= 3 * share
    assert config.microbatch.score >= share and config.microbatch.train == 20
    assert (config.mesh.fsdp, config.remat, config.execution) == (1, "none", "auto")


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (emoji_policy_gradient.get_config, {"convolution": "xla"}),
        # Its pieces are of 4, or of 23.
        (lambda: emoji_policy_gradient.get_config("preference"), {"batch_size": 92}),
        (emoji_flow.get_config, {}),
    ],
)
def test_on_a_cpu_updates_are_whole_where_pieces_gain_nothing(make, changes):
    config = make()
    config.update_from_flattened_dict(changes)
    config, _ = planning.resolve(config, devices(1, 4 * GIB, "cpu"))
    assert config.microbatch.train >= config.batch_size


@pytest.mark.parametrize("name", ["sample", "train"])
def test_in_bfloat16_one_number_is_both(name):
    config = joint.get_config()
    config.microbatch[name] = 2
    filled, _ = planning.resolve(config, devices(8))
    assert filled.microbatch.sample == filled.microbatch.train == 2


def test_more_memory_recomputes_less():
    remat = {"none": 0, "blocks": 1, "full": 2}
    found = [
        planning.choose(joint.get_config(), devices(8, size * GIB)).division
        for size in (10, 13, 16, 32, 95)
    ]
    kept = [remat[division.remat] for division in found]
    assert kept == sorted(kept, reverse=True) and kept[-1] == 0 < kept[0]


def test_blocks_are_gathered_only_where_the_whole_does_not_fit():
    found = []
    for size in (95, 31, 12):
        plan = planning.choose(hps.get_config(XL), devices(64, size * GIB))
        assert plan.fits
        found.append(plan.division.gather)
    assert found == ["whole", "whole", "blocks"]


def test_a_judge_that_holds_much_of_an_image_is_shown_few():
    """OWLv2, which no task is rewarded by."""
    config = hps.get_config()
    usual = planning.choose(config, devices(8)).division.score
    config.evaluation.scorers.objects = common.make_scorer("detection", "google/owlv2-base")
    config.evaluation.sets.judged = common.make_evaluation_set("emoji:new_pairs", 8, ("objects",))
    plan = planning.choose(config, devices(8))
    judged = plan.division.score * memory.OWLV2_IMAGE
    assert judged <= plan.devices.memory / 8 < usual * memory.OWLV2_IMAGE
    config.microbatch.score = 32
    crowded = planning.choose(config, devices(8))
    # A block of an evaluation is what a chip samples at a time.
    assert crowded.phase == "evaluate" and crowded.memory > 8 * memory.OWLV2_IMAGE
