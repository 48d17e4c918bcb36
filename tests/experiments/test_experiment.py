import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from configs import common, emoji_policy_gradient
from diffusionrl_jax.data.emoji import pictures
from diffusionrl_jax.experiments import experiment as experiments
from diffusionrl_jax.learning import summary
from diffusionrl_jax.learning.execution import make_train_step
from diffusionrl_jax.monitoring.progress import PhaseTimer

DETECTION = common.make_scorer("detection", "asset:emoji/detection")

FIELDS = "algorithm.policy_gradient"


def test_pretraining_latents_are_the_encoders(experiment):
    policy, dataset = experiment.policy, experiment.pictures
    assert len(dataset) == 12
    examples = [pictures.random_example(np.random.default_rng((0, n))) for n in range(12)]
    prompts = experiment.policy.model.tokenize([example.prompt for example in examples])
    encoded = {name: values[0] for name, values in dataset.read([0]).items()}
    (index,) = np.flatnonzero((prompts == encoded["input_ids"]).all(axis=1))
    image = examples[index].image.astype(np.float32) / 255
    mean, std = jax.jit(policy.model.encode)(policy.params["vae"], image[None])
    # Convolutions of another batch size add up in another order.
    np.testing.assert_allclose(encoded["latent_mean"], mean[0], atol=1e-4)
    np.testing.assert_allclose(encoded["latent_std"], std[0], atol=1e-4)


def test_state_starts_with_the_models_parameters(experiment):
    state = experiment.init_state()
    assert int(state.step) == 0
    for params in (state.params, state.ema_params):
        same = jax.tree.map(np.array_equal, params, experiment.policy.denoiser)
        assert jax.tree.all(same)
    assert state.evaluation_params is state.ema_params


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "config.model is empty"),
        ({"batch_size": 12}, r"config.batch_size \(task small\)=12 must be a multiple of 8"),
        ({"tasks.small.group_size": 3}, "groups of 3"),
        ({f"{FIELDS}.timesteps_per_iteration": 4}, "timesteps_per_iteration"),
        ({f"{FIELDS}.timesteps_per_iteration": 0}, "Nothing is trained"),
        ({"tasks.small.weight": 0.0}, "Nothing is trained: set the weight of a task"),
        ({"sampler.eta": 0.0}, "eta must be above 0"),
        ({"sampler.eta": 1.5}, "eta=1.5 must be a number from 0 to 1"),
        ({"optimizer.gradient_clip": -1.0}, "gradient_clip=-1.0 must be .*, or 0, which does not"),
        ({"evaluation.every": 0}, "evaluation.every=0 must be a whole number from 1"),
        ({"checkpoint.every": 0}, "checkpoint.every=0 must be a whole number from 1"),
        ({"sampler.guidance_scale": 0.0}, "guidance_scale=0.0 must be 1, no guidance, or more"),
        ({"sampler.guidance_scale": 0.5}, "guidance_scale=0.5 must be 1, no guidance, or more"),
        ({"sampler.guidance_scale": -1.0}, "guidance_scale=-1.0 must be a number from 0"),
        ({"sampler.guidance_scale": math.nan}, "guidance_scale=nan must be a number from 0"),
        (
            {"batch_size": 48, "microbatch.sample": 4},
            "microbatch.sample=4 must divide the 6 samples that each device has",
        ),
        ({"batch_size": 48, "microbatch.train": 4}, "microbatch.train=4 must divide the 6"),
        ({"mesh.fsdp": 3}, "mesh.fsdp=3 must be one of"),
        ({"mesh.gather": "parts"}, "mesh.gather='parts' must be one of"),
        ({"tasks.small.prompts": "emoji:dragons"}, "There are no prompts 'emoji:dragons'"),
        ({"tasks.small.scorer.reward": "beauty"}, "reward='beauty' is not one of"),
        (
            {"tasks.small.scorer": common.make_weighted_sum(a=(common.make_scorer("beauty"), 1))},
            "reward='beauty' is not one of",
        ),
        (
            {"dtype": "bfloat16", "batch_size": 16, "microbatch.train": 1},
            "a device samples 2 and trains on 1\\.",
        ),
        (
            {"batch_size": 32, "tasks.small.group_size": 4, "microbatch.score": 2},
            "microbatch.score=2 must be a multiple of task small's group_size, 4,",
        ),
        ({"model": "asset:dragons"}, "'asset:dragons' is not shipped"),
        ({"model": "/no/such/folder"}, "/no/such/folder does not exist"),
        ({"lora.rank": 2, "lora.alpha": -1.0}, "lora.alpha=-1.0 must be a number from 1e-06"),
        ({"lora.rank": 2, "lora.targets": ("to_x",)}, "names 'to_x', but the denoiser has no such"),
        ({"tasks.small.normalisation": "image"}, "normalisation='image' must be one of"),
        (
            {"tasks.small.normalisation": "prompt", "tasks.small.most_prompts": 9},
            "'emoji:pairs': There are [0-9]+, more than 9. Raise most_prompts, or",
        ),
        (
            {"tasks.small.normalisation": "prompt", "tasks.small.prompt_min_count": 33},
            "prompt_min_count=33 must be between 1 and prompt_buffer=32",
        ),
        ({"pretraining.weight": 1.0}, "config.pretraining.pictures is empty"),
        (
            {f"{FIELDS}.kl_weight": -0.1},
            f"config.{FIELDS}.kl_weight=-0.1 must be a number from 0 to",
        ),
        (
            {f"{FIELDS}.kl_weight": math.nan},
            f"config.{FIELDS}.kl_weight=nan must be a number from 0 to",
        ),
        (
            {
                f"{FIELDS}.kl_weight": 0.1,
                f"{FIELDS}.timesteps_per_iteration": 0,
                "pretraining.weight": 1.0,
            },
            f"config.{FIELDS}.kl_weight=0.1 is of no effect with timesteps_per_iteration=0",
        ),
        (
            {"tasks.small.prompts": "emoji:portraits", "tasks.small.scorer": DETECTION},
            "config.tasks.small.prompts='emoji:portraits': The prompt 'a portrait of .* names none",
        ),
        (
            {
                "tasks.small.prompts": "emoji:portraits",
                "tasks.small.scorer": common.make_weighted_sum(
                    size=(common.make_scorer("jpeg_size"), 1.0), objects=(DETECTION, 1.0)
                ),
            },
            "config.tasks.small.prompts='emoji:portraits': The prompt 'a portrait of .* names none",
        ),
    ],
)
def test_bad_config_is_one_clear_error(changes, message, make_config):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        experiments.build(make_config(**changes))


def test_without_tasks_there_is_nothing_to_do(make_config):
    config = make_config()
    del config.tasks.small
    with pytest.raises(ValueError, match="config.tasks is empty"):
        experiments.build(config)


def test_options_of_rewards_are_checked(make_config):
    scorer = make_config().tasks.small.scorer
    scorer.options.quality = 50
    reward, _ = experiments.load_scorer(scorer, group_size=1)
    assert reward.quality == 50
    scorer.options.weight = 1
    with pytest.raises(ValueError, match=r"jpeg_size has no option \['weight'\]"):
        experiments.load_scorer(scorer, group_size=1)


def metrics(count, tasks=2):
    updates = tasks * count + 1
    values = {
        name: np.arange(updates, dtype=np.float32)
        for name in ("loss", "ratio", "clip_fraction", "approximate_kl", "gradient_norm")
    }
    values |= {name: np.full(updates, 0.25) for name in ("ratio_error", "largest_ratio_error")}
    values |= {name: np.arange(2.0) for name in ("reward_mean", "reward_std")}
    owners = np.arange(updates) == updates - 1
    return values | {"invalid_rewards": np.array([0, 8]), "objective": owners}


def test_metrics_are_named_by_task(experiment):
    values = summary.summarise(metrics(1), experiment.task_names, experiment.algorithm)
    assert json.loads(json.dumps(values)) == values
    assert values["people/loss"] == 0.0
    assert values["small/loss"] == 1.0
    assert values["pretraining/loss"] == 2.0
    assert values["small/reward_mean"] == 1.0
    assert values["ratio_check/max"] == 0.25


def test_the_kl_to_the_base_is_a_metric_where_it_has_a_weight(experiment):
    algorithm = experiment.algorithm
    assert not any("kl_to_base" in name for name in summary.summarise(metrics(1), "ab", algorithm))
    policy, pretraining = algorithm.objectives
    policy = dataclasses.replace(policy, kl_weight=1.0)
    weighted = dataclasses.replace(algorithm, objectives=(policy, pretraining))
    values = metrics(1) | {"kl_to_base": np.arange(3, dtype=np.float32)}
    assert summary.summarise(values, "ab", weighted)["b/kl_to_base"] == 1.0


def test_what_is_not_finite_stops_the_run():
    values = {"small/gradient_norm": 1.0}
    names = ("small", "people")
    with pytest.raises(FloatingPointError, match="All 8 rewards of task 'people' are NaN"):
        summary.check_finite(values, metrics(1), names, batch_size=8)
    summary.check_finite(values, metrics(1), names, batch_size=16)
    with pytest.raises(FloatingPointError, match="small/gradient_norm is nan"):
        summary.check_finite({"small/gradient_norm": math.nan}, metrics(1), names, 16)


@pytest.mark.slow
def test_the_main_jobs_ratio_is_one_at_unchanged_parameters(compilation_cache):
    """Of the shipped model in every step of the chain that it is trained on."""
    config = emoji_policy_gradient.get_config()
    config.update_from_flattened_dict(
        {
            "batch_size": 160,
            f"{FIELDS}.timesteps_per_iteration": 3,
            "microbatch.sample": 10,  # Sums are taken in another order than in training.
            "pretraining.weight": 0.0,
            "optimizer.learning_rate": 0.0,
        }
    )
    experiment = experiments.build(config)
    state = experiment.init_state()
    step = make_train_step(experiment.algorithm, state, "split", PhaseTimer())
    _, metrics = step(state, experiment.frozen, experiment.batch(0))
    assert metrics["ratio_error"].shape == (9,)
    assert metrics["gradient_norm"].min() > 0
    assert 0 < metrics["ratio_error"].max() < 1e-6
    assert metrics["largest_ratio_error"].max() < 1e-5
