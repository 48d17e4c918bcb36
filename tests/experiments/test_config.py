"""Configs and states of earlier runs open, through one place."""

import copy
import json

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import common, emoji_policy_gradient
from diffusionrl_jax.distributed.mesh import make_mesh, parameter_sharding
from diffusionrl_jax.experiments import config as fields
from diffusionrl_jax.learning.prompt_statistics import init_statistics
from diffusionrl_jax.learning.state import TrainState, init_state
from diffusionrl_jax.runs import trained
from diffusionrl_jax.runs.checkpoints import Checkpoints


def first_version(config):
    """A config.json as the first runs have it."""
    values = json.loads(json.dumps(config.to_dict()))
    values |= values.pop("algorithm")["policy_gradient"]
    del values["kl_weight"], values["remove_ratio_bias"], values["most_divergence"]
    del values["shared_prefix"]
    del values["lora"], values["optimizer"]["one_step"]
    del values["mesh"]["split_frozen"], values["mesh"]["gather"]
    del values["microbatch"]["score"]
    for task in values["tasks"].values():
        del task["algorithm"]
    return values


def test_what_old_configs_lack_is_filled_in():
    config = emoji_policy_gradient.get_config()
    found = fields.of_earlier(first_version(config))
    config.mesh.gather = "whole"  # as there was nothing else
    config.algorithm.awm.weighting = "none"
    config.algorithm.dgpo.least_time = 0.0
    config.algorithm.crd.first_decay = 0.0
    config.algorithm.dpo_offline.text_dropout = 0.0
    config.algorithm.nft.error = "clean"
    assert json.dumps(found.to_dict()) == json.dumps(config.to_dict())


def test_a_method_that_was_renamed_keeps_its_fields():
    """What learned from guesses of noised samples was called draft_lv."""
    config = emoji_policy_gradient.get_config()
    config.algorithm.reward_gradient.most_time = 0.5
    values = json.loads(json.dumps(config.to_dict()))
    algorithm = values["algorithm"]
    algorithm |= {"draft_lv": algorithm.pop("reward_gradient"), "name": "draft_lv"}
    values["tasks"]["preference"]["algorithm"] = "draft_lv"
    found = fields.of_earlier(values)
    assert found.algorithm.name == found.tasks.preference.algorithm == "reward_gradient"
    assert found.algorithm.reward_gradient.most_time == 0.5
    assert found.algorithm.draft_lv == fields.get_config().algorithm.draft_lv
    assert found.tasks.fairness.algorithm == ""


def test_a_present_config_stays_as_it_is():
    config = emoji_policy_gradient.get_config()
    config.algorithm.name = "reward_weighted"
    config.algorithm.reward_weighted.noises = 3
    values = json.loads(json.dumps(config.to_dict()))
    before = copy.deepcopy(values)
    assert json.dumps(fields.of_earlier(values).to_dict()) == json.dumps(before)
    assert values == before


def test_common_is_the_package_s_own():
    assert common.get_config is fields.get_config


@flax.struct.dataclass
class EarlierState:
    """As checkpoints of earlier versions were written."""

    step: jax.Array
    params: dict
    optimizer_state: optax.OptState
    ema_params: dict
    past_rewards: tuple


def test_checkpoints_of_earlier_versions_open(tmp_path):
    params = {"kernel": jnp.arange(6.0).reshape(2, 3)}
    past = (None, init_statistics(2, 4))
    state = init_state(params, optax.adamw(1e-3), 0.5, {"past_rewards": past})
    mesh = make_mesh()
    earlier = EarlierState(jnp.int32(3), state.params, state.optimizer_state, params, past)
    earlier = jax.device_put(earlier, parameter_sharding(mesh, earlier))
    saving = Checkpoints(str(tmp_path))
    saving.save(3, earlier)
    saving.close()
    shardings = parameter_sharding(mesh, state)
    shapes = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings,
    )
    checkpoints = Checkpoints(str(tmp_path))
    step, restored = trained.restore_state(checkpoints, shapes)
    checkpoints.close()
    assert step == 3 and isinstance(restored, TrainState)
    expected = state.replace(step=earlier.step)
    assert jax.tree.all(jax.tree.map(np.array_equal, restored, expected))
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
