"""A model of two parameters, which every method can be run with through the real config."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np

from configs import common
from diffusionrl_jax.algorithms import ALGORITHMS
from diffusionrl_jax.diffusion.ddim import make_ddim
from diffusionrl_jax.distributed.mesh import make_mesh, parameter_sharding
from diffusionrl_jax.experiments.algorithm import initial_state, make_algorithm, needs_base
from diffusionrl_jax.learning.execution import make_train_step
from diffusionrl_jax.learning.iteration import Batch, Frozen
from diffusionrl_jax.models.folders.published import NOISE_SCHEDULE
from diffusionrl_jax.monitoring.progress import PhaseTimer

# The deviation of the pixels that the model knows.
DEVIATION = 0.5


@dataclasses.dataclass(frozen=True)
class Toy:
    """A `TextToImage`: of pixels that are normal, with a mean of level + slope * the prompt's."""

    prediction_type: str = "epsilon"

    denoiser_name = "denoiser"
    dtype = jnp.dtype("float32")
    latent_shape = (2, 2, 3)
    image_shape = (2, 2, 3)

    @property
    def scheduler_config(self):
        return NOISE_SCHEDULE | {"prediction_type": self.prediction_type}

    def tokenize(self, prompts):
        return np.array([[len(prompt)] for prompt in prompts], np.int32)

    def encode_text(self, params, input_ids):
        return input_ids[:, 0] / 10

    encode_empty = encode_text

    def denoise(self, params, latents, times, text):
        """What is best for these pixels, whose noisy ones are normal too."""
        passes = len(text) // len(latents)
        latents, times = jnp.repeat(latents, passes, 0), jnp.repeat(times, passes)
        alpha = make_ddim(NOISE_SCHEDULE, 1).training_alpha_bar[times][:, None, None, None]
        signal, sigma = jnp.sqrt(alpha), jnp.sqrt(1 - alpha)
        mean = (params["level"] + params["slope"] * text)[:, None, None, None]
        noise = sigma * (latents - signal * mean) / (alpha * DEVIATION**2 + sigma**2)
        if self.prediction_type == "epsilon":
            return noise
        return (noise - sigma * latents) / signal

    def decode(self, params, latents):
        return jax.nn.sigmoid(latents)


@dataclasses.dataclass(frozen=True)
class Brightness:
    """A `Reward` that has a gradient."""

    @classmethod
    def load(cls, path, **options):
        return cls(**options), {}

    def prepare(self, prompts):
        return {}

    def __call__(self, params, images, inputs):
        return images.mean((1, 2, 3))


def pairs(ids):
    """Of two neighbours people have chosen the brighter."""
    rng = np.random.default_rng(0)
    mean = DEVIATION * rng.standard_normal((len(ids), *Toy.latent_shape)).astype(np.float32)
    mean += np.resize(np.float32([0.5, -0.5]), len(ids))[:, None, None, None]
    captions = np.repeat(ids[::2], 2, axis=0)
    return {"latent_mean": mean, "latent_std": np.zeros_like(mean), "input_ids": captions}


def make(name, prediction_type="epsilon", devices=1, tasks=1, **changes):
    """What a method is run with: config, algorithm, frozen, batch, state, and a train step.

    Groups of four, 16 samples of each task, four steps of the chain without noise unless a change
    says otherwise; the tasks share a reward.
    """
    config = common.get_config()
    scorer = common.make_scorer("tests.algorithms.toy:Brightness")
    for number in range(tasks):
        config.tasks[f"task{number}"] = common.make_task(
            scorer, "emoji:pairs", group_size=4, normalisation="group"
        )
    config.algorithm.name = name
    config.algorithm.policy_gradient.update(timesteps_per_iteration=2, clip_range=0.1)
    config.algorithm.refl.late_steps = 2
    config.algorithm.dpo_offline.pairs = "the batch's"
    config.pretraining.weight = 0.0
    config.optimizer.update(learning_rate=0.02, weight_decay=0.0)
    config.sampler.update(steps=4, eta=1.0, guidance_scale=1.0)
    config.batch_size = 16
    config.update_from_flattened_dict(changes)
    model, mesh = Toy(prediction_type), make_mesh(devices=jax.devices()[:devices])
    params = {"level": jnp.zeros(()), "slope": jnp.ones(())}
    algorithm = make_algorithm(config, model, mesh, (Brightness(),) * tasks)
    base = params if needs_base(config) else None
    frozen = Frozen({}, {}, ({},) * tasks, model.tokenize([""])[0], base)
    prompts = np.repeat(["cat", "zebra", "a"], 4)[np.arange(config.batch_size) % 12]
    ids = np.stack([model.tokenize(prompts)] * tasks)
    batch = Batch(jnp.asarray(ids), ({},) * tasks, None, pairs=pairs(ids[0]))
    state = initial_state(config, params)
    # Where it stays: the step is compiled once.
    state = jax.device_put(state, parameter_sharding(mesh, state))
    step = make_train_step(algorithm, state, "fused", PhaseTimer())
    return types.SimpleNamespace(
        config=config, algorithm=algorithm, frozen=frozen, batch=batch, state=state, step=step
    )


def method(config):
    """The objective of a config."""
    process = make_ddim(NOISE_SCHEDULE, config.sampler.steps)
    return ALGORITHMS[config.algorithm.name].make(config, process)


def expected_reward(params):
    """The mean brightness of what the model knows, of three prompts, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    means = params["level"] + params["slope"] * np.array([3, 5, 1]) / 10
    brightness = 1 / (1 + np.exp(-(means[:, None] + DEVIATION * nodes)))
    return (brightness * weights).sum() / weights.sum() / 3
