"""Makes what iterations take from the host: prompts, what rewards need of them, and pictures."""

from collections.abc import Mapping, Sequence

import numpy as np

from diffusionrl_jax.data import prompts
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.data.latents import LatentDataset
from diffusionrl_jax.diffusion.pipeline import Policy
from diffusionrl_jax.distributed.mesh import place
from diffusionrl_jax.experiments.assembly import put_batch
from diffusionrl_jax.experiments.pretraining import pretraining_batch
from diffusionrl_jax.learning.iteration import Batch
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.rewards import Reward
from diffusionrl_jax.rewards.host_reward import Questions, host_rewards
from diffusionrl_jax.rewards.scorers import prepare


def prompt_places_of(
    name: str, task: Config, source: prompts.PromptSource
) -> dict[str, int] | None:
    """Returns the place of each of a task's prompts, or None if it is not normalised by prompt.

    Args:
      name: the task's name, for messages.
      task: the task, from `make_task`.
      source: the task's prompts.

    Raises:
      UserError: there are more different prompts than `most_prompts`, or `prompt_min_count` is not
        between 1 and `prompt_buffer`.
    """
    if task.normalisation != "prompt":
        return None
    if not 1 <= task.prompt_min_count <= task.prompt_buffer:
        raise UserError(
            f"config.tasks.{name}.prompt_min_count={task.prompt_min_count} must be between 1 and "
            f"prompt_buffer={task.prompt_buffer}."
        )
    try:
        return prompts.prompt_places(source, task.most_prompts)
    except ValueError as error:
        raise UserError(
            f"config.tasks.{name} is normalised by prompt, but not with the prompts "
            f"{task.prompts!r}: {error} Raise most_prompts, or normalise by batch or group."
        ) from None


def make_batch(
    config: Config,
    policy: Policy,
    rewards: Sequence[Reward],
    sources: Sequence[prompts.PromptSource],
    places: Sequence[Mapping[str, int] | None],
    pictures: LatentDataset | None,
    step: int,
    pairs: LatentDataset | None = None,
) -> Batch:
    """Returns what an iteration takes from the host, a pure function of the config and the step.

    Args:
      config: see `experiments/config.py`.
      policy: the model, whose tokenizer and mesh are used.
      rewards, sources, places: one of each per task; see `Experiment`.
      pictures: the pictures of the pretraining loss, or None.
      step: the iteration's number, from 0.
      pairs: the pairs of pictures that the method learns from, or None.
    """
    mesh, names = policy.mesh, tuple(config.tasks)
    texts = [
        prompts.prompt_batch(source, step, config.batch_size, config.tasks[name].group_size)
        for name, source in zip(names, sources, strict=True)
    ]
    of_tasks = zip(rewards, texts, strict=True)
    inputs = tuple(prepare(reward, prompts_of_task) for reward, prompts_of_task in of_tasks)
    ids = np.stack([policy.model.tokenize(prompts_of_task) for prompts_of_task in texts])
    numbers = ()
    if any(of_task is not None for of_task in places):
        numbers = tuple(
            None if of_task is None else np.array([of_task[text] for text in prompts_of_task])
            for of_task, prompts_of_task in zip(places, texts, strict=True)
        )
    pretraining = None
    if pictures is not None:
        pretraining = pretraining_batch(pictures, step, config.batch_size, config.seed, mesh)
    chosen = None
    if pairs is not None:
        chosen = pretraining_batch(pairs, step, config.batch_size, config.seed, mesh, together=2)
    return put_batch(
        mesh,
        place,
        input_ids=ids,
        reward_inputs=inputs,
        prompt_places=numbers,
        pretraining=pretraining,
        pairs=chosen,
        questions=_questions(config, rewards, texts, step),
    )


def _questions(
    config: Config,
    rewards: Sequence[Reward],
    texts: Sequence[Sequence[str]],
    step: int,
) -> tuple[Questions, ...]:
    """Returns what the scorers on the host are told, per task; nothing where there are none."""
    if not any(map(host_rewards, rewards)):
        return ()
    rows = range(config.batch_size)
    return tuple(
        Questions(asked, [{"task": name, "iteration": step, "index": row} for row in rows])
        for name, asked in zip(config.tasks, texts, strict=True)
    )
