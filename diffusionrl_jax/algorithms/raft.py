"""RAFT (2304.06767): fine-tuning on the best of each prompt's own samples, all others left out.

It is `reward_weighted` with the weighting "best", on samples of the denoiser that is trained. One
in `group_size` samples is learned from, as many times as there are samples.
"""

from diffusionrl_jax.algorithms.reward_weighted import RewardWeighted, make_objective
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.diffusion.process import Process
from diffusionrl_jax.learning.algorithm import Needs
from diffusionrl_jax.mistakes import UserError


def needs(fields: Config) -> Needs:
    """Returns what the method needs, from the fields of `config.algorithm.raft`."""
    return Needs(fields.noises, latents=True)


def check(config: Config) -> None:
    """Refuses a config that does not fit the method.

    Raises:
      UserError: a task has fewer than 2 images of each prompt.
    """
    for name, task in config.tasks.items():
        if task.group_size < 2:
            raise UserError(
                "The method raft takes the best of each prompt's images: set the group_size of "
                f"task {name} to 2 or more."
            )


def make(config: Config, process: Process) -> RewardWeighted:
    """Makes the objective that a config describes, for the process that draws its samples."""
    return make_objective(config, process, weighting="best", noises=config.algorithm.raft.noises)
