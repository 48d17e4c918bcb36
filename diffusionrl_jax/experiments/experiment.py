"""Makes everything that the training loop needs of a config."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
from absl import logging

from diffusionrl_jax.data import prompts
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.data.latents import LatentDataset
from diffusionrl_jax.data.prompt_sources import make_prompts
from diffusionrl_jax.diffusion.pipeline import Policy
from diffusionrl_jax.distributed.mesh import make_mesh, place
from diffusionrl_jax.experiments import assembly, checks
from diffusionrl_jax.experiments.algorithm import initial_state
from diffusionrl_jax.experiments.batches import make_batch, prompt_places_of
from diffusionrl_jax.experiments.loading import load_policy, start_factors
from diffusionrl_jax.experiments.pretraining import load_pairs, load_pictures, open_pairs
from diffusionrl_jax.learning.adaptation import make_lora, make_merge
from diffusionrl_jax.learning.algorithm import Algorithm
from diffusionrl_jax.learning.iteration import Batch, Frozen
from diffusionrl_jax.learning.state import TrainState
from diffusionrl_jax.models.parameters import Parameters, count
from diffusionrl_jax.rewards import Reward
from diffusionrl_jax.rewards.scorers import load_scorer


@dataclasses.dataclass(frozen=True)
class OpenedScorer:
    """A reward model that is on the mesh.

    Attributes:
      scorer, group_size: the fields of a task or an evaluation set that describe it.
      reward, params: the reward that they describe, and its parameters.
    """

    scorer: Config
    group_size: int
    reward: Reward
    params: Parameters


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All that the training loop needs.

    Attributes:
      config: the config that it was made from.
      policy: the model to start from; after `without_base` it has no denoiser's parameters.
      algorithm: the iteration's functions.
      frozen: the parameters that do not change.
      task_names: the tasks' names, in the order of training.
      sources: the prompts, one source per task.
      pictures: the pictures of the pretraining loss; None without it, and before `with_pictures`.
      pairs: the pairs of pictures that the method learns from; None where it learns from none, and
        before `with_pictures`.
      prompt_places: for each task, the number of each of its prompts, or None if its rewards are
        not normalised by prompt.
      factors: LoRA's factors that training starts from, on the host; None where they are drawn.
    """

    config: Config
    policy: Policy
    algorithm: Algorithm
    frozen: Frozen
    task_names: tuple[str, ...]
    sources: tuple[prompts.PromptSource, ...]
    pictures: LatentDataset | None
    prompt_places: tuple[Mapping[str, int] | None, ...]
    factors: Parameters | None = None
    pairs: LatentDataset | None = None

    def with_pictures(self, cache_dir: str) -> "Experiment":
        """Opens the pictures that are trained on. They are encoded or drawn first, at length.

        Args:
          cache_dir: the folder in which pictures and their latents are kept.

        Raises:
          UserError, FileNotFoundError: there are no such pictures, or they are latents of another
            model.
        """
        policy = self.policy
        # What is wrong with them is told before any picture is drawn.
        chosen = open_pairs(self.config, policy.model)
        pictures = load_pictures(
            self.config, policy.model, policy.params, policy.mesh, cache_dir, self.sources
        )
        pairs = load_pairs(chosen, policy.model, policy.params["vae"], policy.mesh, cache_dir)
        return dataclasses.replace(self, pictures=pictures, pairs=pairs)

    def without_base(self) -> "Experiment":
        """Returns the experiment without the denoiser that it started from.

        It stays in `frozen` where iterations take it.
        """
        return dataclasses.replace(self, policy=self.policy.without_denoiser())

    def batch(self, step: int) -> Batch:
        """Returns what iteration `step` takes from the host, a pure function of config and step."""
        return make_batch(
            *(self.config, self.policy, self.algorithm.rewards, self.sources, self.prompt_places),
            *(self.pictures, step, self.pairs),
        )

    def abstract_state(self) -> TrainState:
        """Returns the state's shapes and shardings, a tree of `jax.ShapeDtypeStruct`."""
        return assembly.abstract_state(self.config, self.policy.denoiser, self.policy.mesh)

    def init_state(self) -> TrainState:
        """Returns the state before the first iteration, sharded."""
        init = functools.partial(initial_state, self.config)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state())
        state = jax.jit(init, out_shardings=shardings)(self.policy.denoiser, self.factors)
        if self.config.lora.rank:
            numbers = count(state.params), count(self.policy.denoiser)
            logging.info("LoRA trains %d numbers beside the denoiser's %d.", *numbers)
        return state

    def opened_scorers(self) -> list[OpenedScorer]:
        """Returns the tasks' rewards with their parameters, on the mesh."""
        tasks = (self.config.tasks[name] for name in self.task_names)
        return [
            OpenedScorer(task.scorer, task.group_size, reward, params)
            for task, reward, params in zip(
                tasks, self.algorithm.rewards, self.frozen.rewards, strict=True
            )
        ]

    @functools.cached_property
    def merge(self) -> Callable[[Parameters], Parameters]:
        """A function from what is trained to the denoiser's parameters."""
        return make_merge(self.policy.mesh, self.frozen.base, make_lora(self.config))


def build(config: Config) -> Experiment:
    """Loads and checks everything but the pretraining pictures, before any compute is spent.

    Args:
      config: see `experiments/config.py`.

    Raises:
      UserError, OSError: something does not fit or is not here; it says what, and the mend.
    """
    checks.check(config, make_mesh(checks.fsdp(config)))
    names = tuple(config.tasks)
    sources = tuple(make_prompts(config.tasks[name].prompts, config.seed) for name in names)
    places = tuple(map(prompt_places_of, names, config.tasks.values(), sources))
    policy = load_policy(config)
    scorers = [
        load_scorer(config.tasks[name].scorer, config.tasks[name].group_size) for name in names
    ]
    for name, source, (reward, _) in zip(names, sources, scorers, strict=True):
        checks.check_task_prompts(name, config, source, reward, policy.model)
    shape = policy.model.image_shape
    for name, source, loaded in zip(names, sources, scorers, strict=True):
        # With a single group, shapes that fit and shapes that do not could be the same.
        task, groups = config.tasks[name], 2
        texts = prompts.prompt_batch(source, 0, groups * task.group_size, task.group_size)
        checks.check_reward(f"config.tasks.{name}.scorer", task.scorer, loaded, shape, texts)
    algorithm, frozen = assembly.assemble(
        config, policy.model, policy.params, policy.mesh, scorers, place
    )
    return Experiment(
        config=config,
        policy=policy,
        algorithm=algorithm,
        frozen=frozen,
        task_names=names,
        sources=sources,
        pictures=None,
        prompt_places=places,
        factors=start_factors(config, policy),
    )
