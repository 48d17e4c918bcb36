"""From a config to everything that an experiment is made of."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from jax.sharding import Mesh

from diffusionrl_jax.data import prompts
from diffusionrl_jax.data.emoji import prompt_sets
from diffusionrl_jax.data.latents import LatentDataset
from diffusionrl_jax.data.prompt_sources import open_prompts
from diffusionrl_jax.diffusion.schedule import Schedule, make_schedule
from diffusionrl_jax.distributed.mesh import (
    abstract_arrays,
    batch_sharding,
    frozen_sharding,
    make_mesh,
    network_sharding,
    parameter_sharding,
    place,
    replicated,
)
from diffusionrl_jax.experiments import checks, fetching
from diffusionrl_jax.experiments.pretraining import load_pictures, pretraining_batch
from diffusionrl_jax.learning.adaptation import make_lora, make_merge
from diffusionrl_jax.learning.iteration import Batch, Frozen, Hyperparameters
from diffusionrl_jax.learning.policy_gradient import PolicyGradient
from diffusionrl_jax.learning.prompt_statistics import init_past_rewards
from diffusionrl_jax.learning.state import TrainState, init_state, make_optimizer
from diffusionrl_jax.models.lora import count
from diffusionrl_jax.models.stable_diffusion.model import (
    Parameters,
    StableDiffusion,
    load_stable_diffusion,
)
from diffusionrl_jax.rewards import Reward
from diffusionrl_jax.rewards.host_reward import Questions, host_rewards
from diffusionrl_jax.rewards.scorers import (
    is_on_host,
    load_scorer,
    prepare,
)

EMOJI = "emoji:"
NORMALISATIONS = ("batch", "group", "prompt")


@dataclasses.dataclass(frozen=True)
class Policy:
    """A loaded Stable Diffusion with the chain that it is sampled by.

    Attributes:
      model, schedule: the networks and the chain.
      params: "unet", "vae" and "text_encoder", placed on the mesh.
      mesh: the devices.
    """

    model: StableDiffusion
    schedule: Schedule
    params: dict[str, Parameters]
    mesh: Mesh

    @property
    def empty_ids(self) -> np.ndarray:
        """int32 [tokens], the empty prompt."""
        return self.model.tokenize([""])[0]


def load_policy(config: ml_collections.ConfigDict, path: str | None = None) -> Policy:
    """Opens the model of a config (or another folder), sharded over the config's mesh.

    Raises:
      ValueError, FileNotFoundError: a field or a weight that does not fit; the message names it.
    """
    if not (path or config.model):
        raise ValueError("config.model is empty: name a diffusers folder or a hub id.")
    mesh = make_mesh(checks.fsdp(config))
    model, params = load_stable_diffusion(
        path or config.model,
        dtype=jnp.dtype(config.dtype),
        convolution=config.convolution,
        remat=checks.remat(config),
        sharding=functools.partial(network_sharding, mesh, split_frozen(config)),
        attention=config.attention,
        mesh=mesh,
    )
    schedule = make_schedule(model.scheduler_config, config.sampler.steps)
    return Policy(model, schedule, params, mesh)


def split_frozen(config: ml_collections.ConfigDict) -> bool:
    """`config.mesh.split_frozen`, which the first runs' config.json does not have."""
    return config.mesh.get("split_frozen", True)


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


def make_prompts(name: str, seed: int) -> prompts.PromptSource:
    """The prompts that a config names: `emoji:pairs` and the like, or as `open_prompts` knows.

    Raises:
      ValueError, OSError: if there are no such prompts, or one is broken.
    """
    if not name.startswith(EMOJI):
        return open_prompts(name, seed)
    chosen = name.removeprefix(EMOJI)
    if chosen not in prompt_sets.PROMPT_SETS:
        known = [EMOJI + known for known in prompt_sets.PROMPT_SETS]
        raise ValueError(f"There are no prompts {name!r}: use one of {known}, or a file.")
    return prompt_sets.PROMPT_SETS[chosen](seed)


@dataclasses.dataclass(frozen=True)
class OpenedScorer:
    """A reward model that is on the mesh.

    Attributes:
      scorer, group_size: as a task has them.
      reward, params: what they describe.
    """

    scorer: ml_collections.ConfigDict
    group_size: int
    reward: Reward
    params: Parameters


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All that the training loop needs.

    Attributes:
      config: what it was made from.
      policy: the model to start from.
      algorithm: the iteration's functions.
      frozen: parameters that do not change.
      task_names: in the order of training.
      sources: of prompts, one per task.
      pictures: for the pretraining loss; None without it, and before `with_pictures`.
      prompt_places: of each task, the number of each of its prompts, or None if its rewards are not
        normalised by prompt.
    """

    config: ml_collections.ConfigDict
    policy: Policy
    algorithm: PolicyGradient
    frozen: Frozen
    task_names: tuple[str, ...]
    sources: tuple[prompts.PromptSource, ...]
    pictures: LatentDataset | None
    prompt_places: tuple[Mapping[str, int] | None, ...]

    def with_pictures(self, cache_dir: str) -> "Experiment":
        """Opens the pretraining pictures; they are encoded or drawn first, which may take long.

        Args:
          cache_dir: where pictures and their latents are kept.

        Raises:
          ValueError, FileNotFoundError: there are no such pictures, or latents of another model.
        """
        policy = self.policy
        pictures = load_pictures(
            self.config, policy.model, policy.params, policy.mesh, cache_dir, self.sources
        )
        return dataclasses.replace(self, pictures=pictures)

    def batch(self, step: int) -> Batch:
        """What iteration `step` takes from the host: a pure function of the config and the step."""
        config, mesh = self.config, self.policy.mesh
        texts = [
            prompts.prompt_batch(source, step, config.batch_size, config.tasks[name].group_size)
            for name, source in zip(self.task_names, self.sources, strict=True)
        ]
        rewards = zip(self.algorithm.rewards, texts, strict=True)
        inputs = tuple(prepare(reward, prompts_of_task) for reward, prompts_of_task in rewards)
        ids = np.stack([self.policy.model.tokenize(prompts_of_task) for prompts_of_task in texts])
        places = ()
        if any(numbers is not None for numbers in self.prompt_places):
            places = tuple(
                None if numbers is None else np.array([numbers[text] for text in prompts_of_task])
                for numbers, prompts_of_task in zip(self.prompt_places, texts, strict=True)
            )
        pretraining = None
        if self.pictures is not None:
            pretraining = pretraining_batch(
                self.pictures, step, config.batch_size, config.seed, mesh
            )
        return Batch(
            input_ids=place(ids, batch_sharding(mesh, axis=1)),
            reward_inputs=place(inputs, batch_sharding(mesh)),
            pretraining=pretraining,
            prompt_places=place(places, batch_sharding(mesh)),
            questions=self._questions(texts, step),
        )

    def _questions(self, texts: Sequence[Sequence[str]], step: int) -> tuple[Questions, ...]:
        if not any(map(host_rewards, self.algorithm.rewards)):
            return ()
        rows = range(self.config.batch_size)
        return tuple(
            Questions(asked, [{"task": name, "iteration": step, "index": row} for row in rows])
            for name, asked in zip(self.task_names, texts, strict=True)
        )

    def abstract_state(self) -> TrainState:
        """The state's shapes and shardings: a tree of `jax.ShapeDtypeStruct`."""
        init = functools.partial(initial_state, self.config)
        shapes = jax.eval_shape(init, self.policy.params["unet"])
        return abstract_arrays(shapes, parameter_sharding(self.policy.mesh, shapes))

    def init_state(self) -> TrainState:
        """The state before the first iteration, sharded."""
        unet = self.policy.params["unet"]
        init = functools.partial(initial_state, self.config)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state())
        state = jax.jit(init, out_shardings=shardings)(unet)
        if self.algorithm.lora is not None:
            numbers = count(state.params), count(unet)
            logging.info("LoRA trains %d numbers beside the UNet's %d.", *numbers)
        return state

    def opened_scorers(self) -> list[OpenedScorer]:
        """The tasks' rewards with their parameters, on the mesh."""
        tasks = (self.config.tasks[name] for name in self.task_names)
        return [
            OpenedScorer(task.scorer, task.group_size, reward, params)
            for task, reward, params in zip(
                tasks, self.algorithm.rewards, self.frozen.rewards, strict=True
            )
        ]

    @functools.cached_property
    def merge(self) -> Callable[[Parameters], Parameters]:
        """From what is trained to the UNet's parameters."""
        return make_merge(self.policy.mesh, self.policy.params["unet"], self.algorithm.lora)


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


def _prompt_places(
    name: str, task: ml_collections.ConfigDict, source: prompts.PromptSource
) -> dict[str, int] | None:
    if task.normalisation != "prompt":
        return None
    if not 1 <= task.prompt_min_count <= task.prompt_buffer:
        raise ValueError(
            f"config.tasks.{name}.prompt_min_count={task.prompt_min_count} must be between 1 and "
            f"prompt_buffer={task.prompt_buffer}."
        )
    try:
        return prompts.prompt_places(source, task.most_prompts)
    except ValueError as error:
        raise ValueError(
            f"config.tasks.{name} is normalised by prompt, but not with the prompts "
            f"{task.prompts!r}: {error} Raise most_prompts, or normalise by batch or group."
        ) from None


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


def build(config: ml_collections.ConfigDict) -> Experiment:
    """Loads and checks everything but the pretraining pictures, before any compute is spent.

    What is not here is fetched first.

    Args:
      config: see `configs/common.py`.

    Raises:
      ValueError, OSError: what does not fit or is not here, and the mend.
    """
    checks.check(config, make_mesh(checks.fsdp(config)))
    fetching.bring(config)
    names = tuple(config.tasks)
    sources = tuple(make_prompts(config.tasks[name].prompts, config.seed) for name in names)
    places = tuple(map(_prompt_places, names, config.tasks.values(), sources))
    lora = make_lora(config)
    policy = load_policy(config)
    if lora is not None:
        lora.kernels(policy.params["unet"])  # Refuses targets that are not there.
    scorers = [
        load_scorer(config.tasks[name].scorer, config.tasks[name].group_size) for name in names
    ]
    for name, source, (reward, _) in zip(names, sources, scorers, strict=True):
        checks.check_task_prompts(name, config, source, reward)
    algorithm = make_algorithm(config, policy.model, policy.mesh, [reward for reward, _ in scorers])
    rewards = tuple(params for _, params in scorers)
    frozen = Frozen(
        text_encoder=policy.params["text_encoder"],
        vae=policy.params["vae"],
        rewards=place(rewards, frozen_sharding(policy.mesh, rewards, split_frozen(config))),
        empty_ids=place(policy.empty_ids, replicated(policy.mesh)),
        unet=policy.params["unet"] if needs_base(config) else None,
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
    )
