"""Which divisions of an experiment are the best."""

import pytest

from configs import emoji_flow, emoji_policy_gradient, hps, joint
from diffusionrl_jax.experiments import divisions, planning
from tests.experiments.test_planning import GIB, XL, devices


@pytest.mark.parametrize(("chips", "split"), [(1, 1), (8, 8), (16, 16), (24, 12), (256, 16)])
def test_more_chips_than_sixteen_share_no_more(chips, split):
    assert divisions.usual_split(chips) == split


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
        planning.choose(joint.get_config(), devices(8, memory * GIB)).division
        for memory in (10, 13, 16, 32, 95)
    ]
    kept = [remat[division.remat] for division in found]
    assert kept == sorted(kept, reverse=True) and kept[-1] == 0 < kept[0]


def test_blocks_are_gathered_only_where_the_whole_does_not_fit():
    found = []
    for memory in (95, 31, 12):
        plan = planning.choose(hps.get_config(XL), devices(64, memory * GIB))
        assert plan.fits
        found.append(plan.division.gather)
    assert found == ["whole", "whole", "blocks"]
