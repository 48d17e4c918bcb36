"""Makes the parts of a config that have a name each: scorers, tasks and evaluation sets.

`experiments/config.py` has all other fields.
"""

import ml_collections

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.mistakes import UserError


def make_scorer(reward: str, path: str = "", **options) -> Config:
    """Returns the config of a reward model.

    Args:
      reward: its name in `diffusionrl_jax.rewards.REWARDS`, or "package.module:Class" for one of
        your own; docs/rewards_of_your_own.md.
      path: the reward's folder or Hugging Face hub id, or the function or address of a host_reward.
        It is empty for a reward without any.
      **options: fields of the reward, such as `credit="leave_one_out"`.
    """
    return ml_collections.ConfigDict(
        {"reward": reward, "path": path, "options": ml_collections.ConfigDict(options)}
    )


def make_weighted_sum(*, normalised: bool = False, **parts: tuple) -> Config:
    """Returns the config of a scorer that adds up others, each times its weight.

    Args:
      normalised: whether each score is normalised by those of its prompt's images before the sum,
        as in GDPO. Scores are else added as they are, on the others' own scales. The mean of what
        is normalised is always 0: scorers of evaluation tell how the rewards grow.
      **parts: for each name, a scorer from `make_scorer` and its weight. A weight below 0 makes a
        penalty.
    """
    scorers = {name: scorer for name, (scorer, _) in parts.items()}
    weights = {name: float(weight) for name, (_, weight) in parts.items()}
    scorer = make_scorer("weighted_sum", scorers=scorers, weights=weights)
    if normalised:  # Sums of earlier runs have no such option.
        scorer.options.normalised = True
    return scorer


def make_task(
    scorer: Config,
    prompts: str,
    group_size: int = 1,
    weight: float = 1.0,
    normalisation: str = "batch",
    shared_noise: bool = False,
    algorithm: str = "",
    prompt_buffer: int = 32,
    prompt_min_count: int = 16,
    most_prompts: int = 4096,
) -> Config:
    """Returns the config of a task: what is drawn, and what it is rewarded by.

    Args:
      scorer: the scorer, from `make_scorer` or `make_weighted_sum`.
      prompts: a .txt, .jsonl or .parquet file (`gs://data/prompts.parquet?held_out=2000`), a file
        on the Hugging Face hub (`hub:poloclub/diffusiondb/metadata.parquet`), `objects:train`,
        `occupations:all`, `emoji:pairs` and the like; see docs/data.md.
      group_size: how many images of each prompt stand next to each other in the batch.
      weight: the weight of the task's loss.
      normalisation: how rewards are normalised: over the "batch", as in the paper (Eq. 10); less
        the mean of the "group" of images of one prompt; by "group_mean", which leaves out the
        deviation, for rewards that are 0 or 1; by "win_rate", the share of its prompt's other
        images that an image beats, by however little; or by the mean and deviation of the last
        rewards of the same "prompt", as DDPO does, which suits prompts that come back often.
      shared_noise: whether the images of a prompt are trained on the same timesteps and share all
        noise but that of those, so that what they differ in is what is credited. Methods that train
        on no step of the chain draw all noise apart.
      algorithm: the method that the task is learned by, as in `config.algorithm.name`, which "" is.
        All draw the iteration's samples alike, by one chain and one model; see docs/methods.md.
      prompt_buffer: how many rewards of a prompt are kept. It has an effect with "prompt" alone, as
        have the next two.
      prompt_min_count: with fewer rewards of a prompt than this, the batch's mean and deviation are
        used.
      most_prompts: how many different prompts may be kept apart.
    """
    return ml_collections.ConfigDict(
        {
            "scorer": scorer,
            "prompts": prompts,
            "group_size": group_size,
            "weight": weight,
            "normalisation": normalisation,
            "shared_noise": shared_noise,
            "algorithm": algorithm,
            "prompt_buffer": prompt_buffer,
            "prompt_min_count": prompt_min_count,
            "most_prompts": most_prompts,
        }
    )


def add_tasks(config: Config, known: dict[str, Config], names: str) -> None:
    """Puts tasks into a config.

    Args:
      config: the config that gets them.
      known: for each name, a task from `make_task`.
      names: the names of those to train on, as in "compositionality,fairness".

    Raises:
      UserError: a name is not known.
    """
    for name in names.split(","):
        if name not in known:
            raise UserError(f"There is no task {name!r}: choose from {', '.join(known)}.")
        config.tasks[name] = known[name]


def make_evaluation_set(
    prompts: str, images: int, scorers: tuple[str, ...], group_size: int = 1
) -> Config:
    """Returns the config of images that are drawn and scored alike for every checkpoint.

    Args:
      prompts: the prompts, as in `make_task`.
      images: how many images are drawn.
      scorers: names in `config.evaluation.scorers`.
      group_size: how many images each prompt has.
    """
    return ml_collections.ConfigDict(
        {"prompts": prompts, "images": images, "scorers": scorers, "group_size": group_size}
    )
