"""Makes an iteration's functions, and the state that training starts from, of a config."""

from collections.abc import Sequence

from jax.sharding import Mesh

from diffusionrl_jax.algorithms import (
    ALGORITHMS,
    method_of,
    needs_of,
    needs_of_method,
    of_method,
    tasks_by_method,
)
from diffusionrl_jax.algorithms.pretraining import Pretraining
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.experiments import checks
from diffusionrl_jax.experiments.chain import make_chain
from diffusionrl_jax.learning.adaptation import Adaptation, make_lora
from diffusionrl_jax.learning.advantages import BY_GROUP, AdvantageRules
from diffusionrl_jax.learning.algorithm import Algorithm
from diffusionrl_jax.learning.experience import Experience
from diffusionrl_jax.learning.gradient import Learner
from diffusionrl_jax.learning.objectives import Objective, Objectives
from diffusionrl_jax.learning.prompt_statistics import init_past_rewards
from diffusionrl_jax.learning.sampling import Sampling
from diffusionrl_jax.learning.state import TrainState, init_state, make_optimizer
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.text_to_image import TextToImage
from diffusionrl_jax.rewards import Reward
from diffusionrl_jax.rewards.scorers import is_on_host


def initial_state(
    config: Config, base: Parameters, factors: Parameters | None = None
) -> TrainState:
    """Returns the state before the first iteration.

    It is a pure function, to be jitted or asked for shapes.

    Args:
      config: see `experiments/config.py`.
      base: the denoiser's parameters that training starts from.
      factors: LoRA's factors that training starts from; None draws them.

    Raises:
      UserError: LoRA's fields do not fit the denoiser.
    """
    lora = make_lora(config)
    params = base
    if lora is not None:
        params = lora.init(base, config.seed) if factors is None else factors
    optimizer = make_optimizer(config.optimizer, updates_per_iteration(config))
    past_rewards = init_past_rewards(config.tasks)
    memory = {"past_rewards": past_rewards} if past_rewards else {}
    samples_ahead = scores_on_host(config) and config.overlap_scoring
    follower = needs_of(config).follower
    return init_state(params, optimizer, config.ema_decay, memory, samples_ahead, follower)


def scores_on_host(config: Config) -> bool:
    """Returns whether images leave the devices to be scored for training."""
    return any(is_on_host(task.scorer) for task in config.tasks.values())


def needs_base(config: Config) -> bool:
    """Returns whether an iteration takes the denoiser that training started from."""
    return bool(config.lora.rank) or needs_of(config).base


def updates_per_iteration(config: Config) -> int:
    """Returns how many gradients an iteration gives to the optimiser."""
    return needs_of(config).updates + (1 if config.pretraining.weight else 0)


def images_per_iteration(config: Config) -> int:
    """Returns how many pictures an iteration learns from: those it draws, or a batch of pairs."""
    return config.batch_size * (1 if needs_of(config).pairs else len(config.tasks))


def passes_of_an_update(lora: bool) -> int:
    """Returns how many forward passes' operations a gradient takes, with its own forward pass.

    A backward pass takes two: for the gradients of what kernels are multiplied with, and for those
    of the kernels. With LoRA the second is needed of the changed kernels alone, and is left out, so
    that this is a lower bound: with factors beside most kernels it is nearer to 3.
    """
    return 2 if lora else 3


def _noise_group(config: Config, name: str) -> int:
    """Returns how many neighbours in the batch of a task share noise."""
    task, needs = config.tasks[name], needs_of_method(config, method_of(config, name))
    # Where no step is credited with its noise, images that share all other noise would be alike. So
    # would those of a task that does not learn, where no other's steps are kept.
    credited = needs.steps and needs_of(config).steps and not needs.late_steps
    return task.group_size if task.shared_noise and credited else 1


def _follower_decay(config: Config) -> tuple[float, float, float]:
    """Returns how the decay of the average in the state's memory grows; see `Learner`."""
    for method in tasks_by_method(config):
        fields = config.algorithm[method]
        if needs_of_method(config, method).follower:
            return fields.first_decay, fields.decay_rate, fields.largest_decay
    return 0.0, 0.0, 0.0


def _advantage_group(name: str, task: Config) -> int:
    """Returns how many neighbours in the batch a task normalises together; 0 means the batch.

    Raises:
      UserError: the task is normalised by group, and its groups have fewer than 2 samples.
    """
    if task.normalisation not in BY_GROUP:
        return 0
    if task.group_size < 2:
        raise UserError(
            f"config.tasks.{name} is normalised by {task.normalisation.replace('_', ' ')}: set its "
            "group_size to 2 or more."
        )
    return task.group_size


def make_algorithm(
    config: Config,
    model: TextToImage,
    mesh: Mesh,
    rewards: Sequence[Reward],
) -> Algorithm:
    """Makes the iteration's functions, which hold no parameters.

    Args:
      config: see `experiments/config.py`.
      model: the networks.
      mesh: the devices, or those of a topology.
      rewards: the rewards, one per task.

    Raises:
      UserError: a field does not fit.
    """
    sampler, microbatch, tasks = config.sampler, config.microbatch, config.tasks
    process, needs, names = make_chain(config, model), needs_of(config), tuple(tasks)
    learner = Learner(
        optimizer=make_optimizer(config.optimizer, updates_per_iteration(config)),
        ema_decay=config.ema_decay,
        microbatch=microbatch.train,
        mesh=mesh,
        follower_decay=_follower_decay(config),
    )
    objectives: tuple[Objective, ...] = ()
    of_tasks: tuple[tuple[int, ...], ...] = ()
    for method, learners in tasks_by_method(config).items():
        if needs_of_method(config, method).updates:
            objectives += (ALGORITHMS[method].make(of_method(config, method), process),)
            of_tasks += (tuple(map(names.index, learners)),)
    if config.pretraining.weight:
        of_tasks += (tuple(range(len(names))),)
        objectives += (
            Pretraining(
                process=process,
                seed=config.seed,
                guidance_scale=sampler.guidance_scale,
                weight=config.pretraining.weight,
                text_dropout=config.pretraining.text_dropout,
                microbatch=microbatch.train,
            ),
        )
    sampling = Sampling(
        seed=config.seed,
        eta=sampler.eta,
        guidance_scale=sampler.guidance_scale,
        steps_kept=needs.steps,
        sample=microbatch.sample,
        decode=microbatch.decode,
        score=microbatch.score,
        differentiate=microbatch.differentiate,
        noise_groups=tuple(_noise_group(config, name) for name in names),
        window=sampler.window,
        window_groups=tuple(task.group_size for task in tasks.values()),
        late_steps=needs.late_steps,
        draws=not needs.pairs,
        keeps_latents=needs.latents,
        from_base=needs.drawn_by_base,
        branches=needs.branches,
    )
    return Objectives(
        experience=Experience(
            model=model,
            process=process,
            adaptation=Adaptation(make_lora(config), checks.gathers_by_blocks(config)),
            rewards=tuple(rewards),
            sampling=sampling,
            mesh=mesh,
        ),
        rules=AdvantageRules(
            clip=config.advantage_clip,
            groups=tuple(_advantage_group(name, tasks[name]) for name in names),
            prompt_min_count=tuple(task.prompt_min_count for task in tasks.values()),
            mesh=mesh,
            normalisations=tuple(task.normalisation for task in tasks.values()),
        ),
        objectives=objectives,
        tasks=of_tasks,
        learner=learner,
    )
