"""From a config to the iteration's functions and its state."""

from collections.abc import Sequence

import ml_collections
from jax.sharding import Mesh

from diffusionrl_jax.diffusion.schedule import make_schedule
from diffusionrl_jax.experiments import checks
from diffusionrl_jax.learning.adaptation import make_lora
from diffusionrl_jax.learning.iteration import Hyperparameters
from diffusionrl_jax.learning.policy_gradient import PolicyGradient
from diffusionrl_jax.learning.prompt_statistics import init_past_rewards
from diffusionrl_jax.learning.state import TrainState, init_state, make_optimizer
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.stable_diffusion.model import StableDiffusion
from diffusionrl_jax.rewards import Reward
from diffusionrl_jax.rewards.scorers import is_on_host

NORMALISATIONS = ("batch", "group", "prompt")


def initial_state(config: ml_collections.ConfigDict, unet_params: Parameters) -> TrainState:
    """The state before the first iteration; a pure function, to be jitted or asked for shapes.

    Args:
      config: see `configs/common.py`.
      unet_params: of the model to start from.

    Raises:
      ValueError: LoRA's fields do not fit the UNet.
    """
    lora = make_lora(config)
    params = unet_params if lora is None else lora.init(unet_params, config.seed)
    optimizer = make_optimizer(config.optimizer, updates_per_iteration(config))
    past_rewards = init_past_rewards(config.tasks)
    samples_ahead = scores_on_host(config) and config.overlap_scoring
    return init_state(params, optimizer, config.ema_decay, past_rewards, samples_ahead)


def scores_on_host(config: ml_collections.ConfigDict) -> bool:
    """Whether images leave the devices to be scored for training."""
    return any(is_on_host(task.scorer) for task in config.tasks.values())


def needs_base(config: ml_collections.ConfigDict) -> bool:
    """Whether an iteration takes the base model's UNet: LoRA, or a KL to it."""
    return make_lora(config) is not None or checks.kl_weight(config) > 0


def updates_per_iteration(config: ml_collections.ConfigDict) -> int:
    """How many steps of the optimiser an iteration takes."""
    policy_updates = len(config.tasks) * config.timesteps_per_iteration
    return policy_updates + (1 if config.pretraining.weight else 0)


def _advantage_group(name: str, task: ml_collections.ConfigDict) -> int:
    if task.normalisation not in NORMALISATIONS:
        raise ValueError(
            f"config.tasks.{name}.normalisation={task.normalisation!r} must be one of "
            f"{NORMALISATIONS}."
        )
    if task.normalisation != "group":
        return 0
    if task.group_size < 2:
        raise ValueError(
            f"config.tasks.{name} is normalised by group: set its group_size to 2 or more."
        )
    return task.group_size


def make_algorithm(
    config: ml_collections.ConfigDict,
    model: StableDiffusion,
    mesh: Mesh,
    rewards: Sequence[Reward],
) -> PolicyGradient:
    """The iteration's functions, which hold no parameters.

    Args:
      config: see `configs/common.py`.
      model: the networks.
      mesh: the devices, or those of a topology.
      rewards: one per task.

    Raises:
      ValueError: a field that does not fit.
    """
    sampler, microbatch = config.sampler, config.microbatch
    return PolicyGradient(
        model=model,
        schedule=make_schedule(model.scheduler_config, sampler.steps),
        rewards=tuple(rewards),
        weights=tuple(config.tasks[name].weight for name in config.tasks),
        optimizer=make_optimizer(config.optimizer, updates_per_iteration(config)),
        hyperparameters=Hyperparameters(
            seed=config.seed,
            eta=sampler.eta,
            guidance_scale=sampler.guidance_scale,
            timesteps_per_iteration=config.timesteps_per_iteration,
            balance_timesteps=config.balance_timesteps,
            clip_range=config.clip_range,
            advantage_clip=config.advantage_clip,
            kl_weight=checks.kl_weight(config),
            pretraining_weight=config.pretraining.weight,
            text_dropout=config.pretraining.text_dropout,
            ema_decay=config.ema_decay,
            sample_microbatch=microbatch.sample,
            decode_microbatch=microbatch.decode,
            score_microbatch=checks.score_microbatch(config),
            update_microbatch=microbatch.train,
        ),
        mesh=mesh,
        advantage_groups=tuple(_advantage_group(name, config.tasks[name]) for name in config.tasks),
        prompt_min_count=tuple(task.prompt_min_count for task in config.tasks.values()),
        noise_groups=tuple(
            config.tasks[name].group_size if config.tasks[name].shared_noise else 1
            for name in config.tasks
        ),
        lora=make_lora(config),
    )
