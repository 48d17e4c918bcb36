"""What is chosen for the devices that are there."""

import itertools
import json

import pytest
from jax.sharding import AbstractMesh

from configs import common, hps, joint, pick_score
from diffusionrl_jax.distributed.devices import Devices, devices_of_topology
from diffusionrl_jax.distributed.mesh import BATCH_AXES
from diffusionrl_jax.experiments import checks, planning
from diffusionrl_jax.runs import trained

XL = "stable_diffusion_xl"
GIB = 2**30


def devices(count, memory=95 * GIB, platform="tpu"):
    return Devices(count, "v5p", platform, memory)


@pytest.mark.parametrize(
    ("make", "count"),
    itertools.product(
        [hps.get_config, joint.get_config, lambda: joint.get_config(XL)],
        [1, 2, 4, 8, 16, 64, 256],
    ),
)
def test_a_plan_passes_all_checks(make, count):
    for lora, dtype in itertools.product((0, 16), ("bfloat16", "float32")):
        config = make()
        config.lora.rank, config.dtype = lora, dtype
        config, plan = planning.resolve(config, devices(count), refuse=False)
        assert count % config.mesh.fsdp == 0
        mesh = AbstractMesh((count // config.mesh.fsdp, config.mesh.fsdp), BATCH_AXES)
        checks.check(config, mesh)
        assert not planning._is_automatic(config)
        assert plan.fits or (count, lora) == (1, 0) or count == 1


def test_a_machine_without_room_for_all_at_once(make_config):
    config = hps.get_config()
    config.dtype = "float32"
    _, plan = planning.resolve(config, devices(1, 64 * GIB, "cpu"))
    assert plan.fits and plan.division.train < 2048


def test_what_is_set_is_kept():
    config = joint.get_config()
    changes = {
        "mesh.fsdp": 2,
        "mesh.gather": "blocks",
        "remat": "full",
        "microbatch.sample": 2,
        "microbatch.decode": 8,
        "microbatch.score": 64,
        "microbatch.train": 2,
        "execution": "split",
    }
    config.update_from_flattened_dict(changes)
    filled, plan = planning.resolve(config, devices(8))
    assert filled.to_dict() == config.to_dict()
    assert plan.split


def test_one_line_with_its_reason():
    plan = planning.choose(hps.get_config(), devices_of_topology("v6e:2x4"))
    assert str(plan).startswith("fsdp 8, microbatches of 8: ")
    assert str(plan).endswith(" of 31.24 GiB a chip")


def test_lora_is_proposed_by_name():
    config, chip = hps.get_config(), devices_of_topology("v5e:1x1")
    lora = r"does not fit 1 v5e chip.*--config\.lora\.rank=16"
    with pytest.raises(
        ValueError, match=rf"{lora} --config\.optimizer\.learning_rate=0\.0001 \("
    ) as caught:
        planning.resolve(config, chip)
    with pytest.raises(ValueError) as earlier:
        planning.refuse_too_large(config, chip)
    assert str(earlier.value) == str(caught.value)
    # A rate that somebody has set is left as it is.
    config.optimizer.learning_rate = 1e-5
    with pytest.raises(ValueError, match=rf"{lora} \("):
        planning.resolve(config, chip)


def test_a_tight_plan_is_warned_of(caplog):
    config, _ = planning.resolve(hps.get_config(), devices(8))
    config.execution = "split"
    _, plan = planning.resolve(config, devices(8))
    for part, tight in ((0.945, False), (0.96, True)):
        caplog.clear()
        _, found = planning.resolve(config, devices(8, plan.memory / part))
        assert found.fits and found.memory == plan.memory
        assert ("The plan is tight" in caplog.text) == tight
    assert f"{found} in {found.phase}. Should a chip" in caplog.text


def test_a_smaller_batch_is_proposed():
    config = joint.get_config()
    config.lora.rank = 16
    with pytest.raises(ValueError, match=r"or --config\.batch_size=\d+ \("):
        planning.resolve(config, devices_of_topology("v5e:1x1"))


def test_a_batch_that_its_method_cannot_divide_is_not_proposed():
    """What does not fit is told of, not a batch that nobody has set."""
    config = hps.get_config()
    config.algorithm.policy_gradient.update(shared_prefix=8, timesteps_per_iteration=1)
    for task in config.tasks.values():
        task.update(group_size=16, shared_noise=True)
    config.batch_size = 512
    with pytest.raises(ValueError, match="does not fit 4 v5p"):
        planning.resolve(config, devices(4, memory=GIB))


def test_memory_that_is_not_known():
    with pytest.raises(ValueError, match="memory of 'v5p' is not known.*config.mesh.fsdp"):
        planning.choose(hps.get_config(), devices(8, None))


def test_batches_that_do_not_divide_are_refused():
    config = hps.get_config()
    with pytest.raises(ValueError, match="config.batch_size .*must be a multiple of 3"):
        planning.choose(config, devices(3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh.fsdp": 3}, "mesh.fsdp=3 must be one of"),
        ({"microbatch.score": 3}, "microbatch.score=3 must divide the 256"),
        ({"evaluation.sets.hps.images": 12}, "sets.hps.images=12 must be a multiple of 8"),
        (
            {"algorithm.name": "dgpo", "tasks.hps.group_size": 512},
            "must be a multiple of 4096, whole groups of task hps",
        ),
    ],
)
def test_what_a_run_would_refuse_has_no_plan(changes, message):
    """So that nothing is fetched for it."""
    config = hps.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        planning.refuse_too_large(config, devices(8))


@pytest.mark.parametrize("topology", ["v5e:2x4", "v6e:2x4", "v5p:2x2x1", "v5e:16x16"])
@pytest.mark.parametrize("method", ["reward_gradient", "refl", "draft_k", "draft_lv"])
def test_methods_of_the_rewards_gradient_fit(method, topology):
    """Few pictures' rewards are differentiated at a time, and as many as there is room for."""
    config = hps.get_config()
    config.algorithm.name = method
    filled, plan = planning.resolve(config, devices_of_topology(topology))
    assert plan.fits and 1 <= filled.microbatch.differentiate <= 8
    config.microbatch.differentiate = 2
    assert planning.choose(config, devices_of_topology(topology)).division.differentiate == 2


def test_rewards_of_ones_own_are_differentiated_in_whole_groups():
    """They may compare a prompt's pictures."""
    config = hps.get_config()
    config.algorithm.name = "draft_k"
    config.tasks.hps.group_size = 4
    config.tasks.hps.scorer = common.make_scorer("tests.algorithms.toy:Brightness")
    filled, _ = planning.resolve(config, devices(8))
    assert filled.microbatch.differentiate == 8
    config.microbatch.differentiate = 2
    with pytest.raises(ValueError, match="differentiate=2 must be a multiple of task hps's"):
        planning.choose(config, devices(8))


@pytest.mark.parametrize(
    ("make", "gather", "fits"),
    [
        (hps.get_config, "whole", True),
        (lambda: pick_score.get_config("flux_dev"), "blocks", True),
        (lambda: pick_score.get_config("flux_dev"), "blocks", False),
    ],
)
def test_what_only_draws_is_gathered_as_there_is_room(make, gather, fits, caplog):
    config = make()
    config.mesh.fsdp = 16
    config.microbatch.sample = 7  # Of training, which divides no number of pictures to be drawn.
    chips = devices(16, (16 if fits else 8) * GIB)
    drawing, at_once = planning.resolve_to_sample(config, 4, chips)
    assert drawing.mesh.gather == gather and (at_once == 4 or not fits)
    assert ("may not fit 16 v5p chips" in caplog.text) == (not fits)
    assert config.mesh.gather == "auto"
    config.batch_size = 16 * 11  # Of training, too.
    assert planning.resolve_to_sample(config, 4, chips)[1] == at_once
    unknown = planning.resolve_to_sample(config, 4, devices(16, None))
    assert unknown[0].mesh.gather == "auto" and unknown[1] == 4


def test_a_run_may_go_on_by_another_plan(make_config, tmp_path):
    config = make_config()
    for count in (1, 8):
        _, plan = planning.resolve(config, devices(count))
        if count > 1:
            trained.check_same_experiment(str(tmp_path), config)
        described = config.to_dict() | {"plan": plan.to_json()}
        (tmp_path / "config.json").write_text(json.dumps(described))
    read = trained.read_config(str(tmp_path))
    assert (read.mesh.fsdp, read.plan.devices.count) == (0, 8)


def test_gpus_hold_no_probabilities_in_half_precision():
    """cuDNN attends in float16 and bfloat16 alone."""

    def memory(attention, dtype):
        config = hps.get_config()
        config.update({"attention": attention, "dtype": dtype, "remat": "none"})
        config.microbatch.update(sample=4, train=4)
        return planning.choose(config, devices(8, 80 * GIB, "gpu")).memory

    assert memory("auto", "bfloat16") == memory("cudnn", "bfloat16")
    assert memory("auto", "bfloat16") < memory("dot_product", "bfloat16") - GIB
    assert memory("auto", "float32") == memory("dot_product", "float32")
