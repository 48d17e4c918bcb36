"""The three tasks of `configs/joint.py` by NFT: fewer steps, no guidance, no trajectory.

docs/performance.md says what it takes beside the paper's method.
"""

import ml_collections

from configs import joint, worlds


def get_config(world: str = worlds.STABLE_DIFFUSION_2) -> ml_collections.ConfigDict:
    """A world's joint config, but for the method and what that draws with (2509.16117, Sec. 4)."""
    config = joint.get_config(world)
    config.algorithm.name = "nft"
    # The tasks move the policy together: see docs/methods.md.
    config.optimizer.one_step = True
    # Any chain will do: the ODE needs the fewest steps, and guidance is learned instead of used.
    config.sampler.noise, config.sampler.eta, config.sampler.window = "eta", 0.0, 0
    config.sampler.steps = min(config.sampler.steps, 10)
    config.sampler.guidance_scale = 1.0
    # The base model's output holds it, in the place of pictures.
    config.pretraining.weight = 0.0
    for task in config.tasks.values():
        # Pictures of a prompt are compared; people's are where the reward compares them.
        if task.group_size == 1:
            task.group_size, task.normalisation = 16, "group"
    return config
