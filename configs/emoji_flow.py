"""The emoji world's tasks with its Stable Diffusion 3, by Flow-GRPO (2505.05470) unguided."""

import ml_collections

from configs import emoji_policy_gradient


def get_config(tasks: str = ",".join(emoji_policy_gradient.TASKS)) -> ml_collections.ConfigDict:
    """The emoji world's tasks, on a chain of flow matching with noise in two steps.

    Methods that look at no step of the chain need no noise either: with
    `--config.algorithm.name=nft` set `--config.sampler.eta=0 --config.sampler.window=0`.

    Args:
      tasks: the names of those to train on, as in `configs/emoji.py`.
    """
    config = emoji_policy_gradient.get_config(tasks)
    config.model = "asset:emoji/stable_diffusion_3"
    # Of 8 steps one is 0.001 long: the scheduler's least time is not 0.
    config.sampler.steps, config.sampler.noise, config.sampler.eta = 8, "sde", 0.7
    config.sampler.window = 2
    config.algorithm.nft.error = "clean"  # As published, where velocities are predicted.
    config.algorithm.policy_gradient.timesteps_per_iteration = 2
    # Without a UNet's convolutions one program is the faster one on a CPU, too.
    config.execution = "fused"
    return config
