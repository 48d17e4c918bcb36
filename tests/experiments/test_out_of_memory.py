"""Devices that run out of memory: what is said, and whether what is proposed passes the checks."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from configs import hps, joint
from diffusionrl_jax.distributed.devices import Devices
from diffusionrl_jax.distributed.mesh import BATCH_AXES
from diffusionrl_jax.experiments import checks, planning
from diffusionrl_jax.experiments.experiment import Experiment
from diffusionrl_jax.experiments.out_of_memory import clear_out_of_memory
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.training.loop import train

FULL = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nMore.")
METHODS = ["policy_gradient", "dgpo", "draft_k", "dpo_offline", "shared_prefix"]
PROPOSED = re.compile(r"--config\.microbatch\.(\w+)=(\d+) \(it was (\d+)\)")


def proposed(config, plan):
    """The proposed microbatches, by name, each with what it was."""
    with pytest.raises(UserError) as caught, clear_out_of_memory(config, plan):
        raise FULL
    assert caught.value.__cause__ is FULL
    text = str(caught.value)
    assert f"{plan}, in {plan.phase}," in text and "allocating 9 bytes" in text
    assert ("lora" in text) == (config.lora.rank == 0)
    assert "take more chips" in text
    return {name: (int(size), int(before)) for name, size, before in PROPOSED.findall(text)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [hps.get_config, joint.get_config])
def test_one_may_go_on_halving_by_what_is_proposed(make, method, dtype, tmp_path):
    config = make()
    config.dtype = dtype
    config.algorithm.name = method.replace("shared_prefix", "policy_gradient")
    if method == "shared_prefix":
        config.algorithm.policy_gradient.shared_prefix = 2
        config.algorithm.policy_gradient.timesteps_per_iteration = 1
    for task in config.tasks.values():
        task.group_size, task.shared_noise = 4, method == "shared_prefix"
        if task.scorer.reward == "statistical_parity":
            with config.unlocked():  # Else a prompt's images could not be compared.
                task.scorer.options.credit = "leave_one_out"
            task.algorithm = "nft" if method == "draft_k" else ""
    if method == "dpo_offline":
        config.algorithm.dpo_offline.pairs = str(tmp_path)
    devices = Devices(4, "v5p", "tpu", 95 * planning.GIB)
    config, plan = planning.resolve(config, devices, refuse=False)
    rounds = 0
    while sizes := proposed(config, plan):
        for name, (size, before) in sizes.items():
            assert before == config.microbatch[name] and size <= before // 2
            config.microbatch[name] = size
        checks.check(config, AbstractMesh((4 // config.mesh.fsdp, config.mesh.fsdp), BATCH_AXES))
        rounds += 1
    assert rounds >= 2
    least = {"dgpo": 4, "dpo_offline": 2, "shared_prefix": 4}.get(method, 1)  # Groups, or pairs.
    assert (config.microbatch.train, config.microbatch.score) == (least, 4)
    assert config.microbatch.differentiate == (method == "draft_k")


def test_a_plan_that_the_devices_have_no_room_for():
    """XLA itself raises what is made clear; other errors stay."""
    config, plan = planning.resolve(hps.get_config(), Devices(4, "v5p", "tpu", 95 * planning.GIB))
    with pytest.raises(UserError, match="have run out of memory"):
        with clear_out_of_memory(config, plan):
            jnp.zeros(2**50, jnp.int8).block_until_ready()
    other = jax.errors.JaxRuntimeError("INTERNAL: a fault")
    with pytest.raises(jax.errors.JaxRuntimeError, match="a fault"):
        with clear_out_of_memory(config, plan):
            raise other


def test_a_run_says_it(make_config, compilation_cache, monkeypatch, tmp_path):
    def draw(self, cache_dir):
        raise FULL

    monkeypatch.setattr(Experiment, "with_pictures", draw)
    with pytest.raises(UserError, match="out of memory, .*--config.microbatch"):
        train(make_config(**{"microbatch.train": 1, "microbatch.score": 1}), str(tmp_path))
