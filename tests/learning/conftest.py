"""A training set-up so small that a whole iteration compiles in seconds."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusionrl_jax.algorithms.policy_gradient import PolicyGradient
from diffusionrl_jax.algorithms.pretraining import Pretraining
from diffusionrl_jax.diffusion.guidance import passes
from diffusionrl_jax.diffusion.process import make_process
from diffusionrl_jax.distributed.mesh import (
    batch_sharding,
    make_mesh,
    parameter_sharding,
    replicated,
)
from diffusionrl_jax.learning.adaptation import Adaptation
from diffusionrl_jax.learning.advantages import AdvantageRules
from diffusionrl_jax.learning.execution import make_train_step
from diffusionrl_jax.learning.experience import Experience
from diffusionrl_jax.learning.gradient import Learner
from diffusionrl_jax.learning.iteration import Batch, Frozen
from diffusionrl_jax.learning.objectives import Objectives
from diffusionrl_jax.learning.sampling import Sampling
from diffusionrl_jax.learning.state import init_state
from diffusionrl_jax.models.folders.published import NOISE_SCHEDULE
from diffusionrl_jax.models.stable_diffusion.build import init_stable_diffusion
from diffusionrl_jax.monitoring.progress import PhaseTimer

TOKENS = 4
VOCABULARY = 32
CONFIGS = {
    "unet": {
        "act_fn": "silu",
        "attention_head_dim": 2,
        "block_out_channels": [32],
        "cross_attention_dim": 16,
        "down_block_types": ["DownBlock2D"],
        "in_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 4,
        "up_block_types": ["UpBlock2D"],
    },
    "vae": {
        "block_out_channels": [8],
        "down_block_types": ["DownEncoderBlock2D"],
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "out_channels": 3,
        "sample_size": 4,
        "scaling_factor": 0.5,
        "up_block_types": ["UpDecoderBlock2D"],
    },
    "text_encoder": {
        "bos_token_id": VOCABULARY - 2,
        "eos_token_id": VOCABULARY - 1,
        "hidden_act": "quick_gelu",
        "hidden_size": 16,
        "intermediate_size": 16,
        "max_position_embeddings": TOKENS,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "projection_dim": 16,
        "vocab_size": VOCABULARY,
    },
    "scheduler": NOISE_SCHEDULE,
}
NUMBERS = {
    "seed": 3,
    "eta": 1.0,
    "guidance_scale": 3.0,
    "timesteps_per_iteration": 2,
    "balance_timesteps": False,
    "clip_range": 1e-2,
    "advantage_clip": 10.0,
    "kl_weight": 0.0,
    "pretraining_weight": 0.5,
    "text_dropout": 0.5,
    "ema_decay": 0.5,
    "sample_microbatch": 0,
    "decode_microbatch": 0,
    "score_microbatch": 0,
    "update_microbatch": 0,
    "branches": 0,
}


def make_objectives(
    model,
    process,
    rewards,
    optimizer,
    mesh,
    numbers,
    noise_groups=(),
    counts=(),
    lora=None,
    by_blocks=False,
):
    """Algorithm 1 of the paper, of flat numbers."""
    seed, eta, scale = (numbers[name] for name in ("seed", "eta", "guidance_scale"))
    count, dropout = numbers["timesteps_per_iteration"], numbers["text_dropout"]
    objectives = ()
    if count:
        policy = {name: numbers[name] for name in ("clip_range", "balance_timesteps", "kl_weight")}
        weights = (1.0, 0.5, 2.0)[: len(rewards)]
        objectives += (PolicyGradient(process, eta, scale, weights, **policy),)
    if weight := numbers["pretraining_weight"]:
        objectives += (
            Pretraining(process, seed, scale, weight, dropout, numbers["update_microbatch"]),
        )
    return Objectives(
        experience=Experience(
            model=model,
            process=process,
            adaptation=Adaptation(lora, by_blocks),
            rewards=rewards,
            sampling=Sampling(
                seed=seed,
                eta=eta,
                guidance_scale=scale,
                steps_kept=count,
                noise_groups=noise_groups,
                branches=numbers["branches"],
                **{name: numbers[f"{name}_microbatch"] for name in ("sample", "decode", "score")},
            ),
            mesh=mesh,
        ),
        rules=AdvantageRules(numbers["advantage_clip"], (0,) * len(rewards), counts, mesh),
        objectives=objectives,
        tasks=(tuple(range(len(rewards))),) * len(objectives),
        learner=Learner(optimizer, numbers["ema_decay"], numbers["update_microbatch"], mesh),
    )


@dataclasses.dataclass(frozen=True)
class Warmth:
    """A smooth reward: how red the pictures are, plus an input for each prompt."""

    def __call__(self, params, images, inputs):
        return params["scale"] * images[..., 0].mean((1, 2)) + inputs["offset"]


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """An algorithm with everything that its functions take.

    Attributes:
      numbers, parts: what the algorithm is made of, by `make_objectives`.
      params: the UNet's, on the host.
      frozen, batch: placed on the mesh.
    """

    numbers: dict
    parts: dict
    params: dict
    frozen: Frozen
    batch: Batch

    @functools.cached_property
    def algorithm(self):
        return make_objectives(**self.parts, numbers=self.numbers)

    @property
    def passes(self):
        return passes(self.numbers["guidance_scale"])

    def changed(self, *, numbers=None, **parts):
        """The same with other numbers and parts."""
        numbers = self.numbers | (numbers or {})
        return dataclasses.replace(self, numbers=numbers, parts=self.parts | parts)

    def state(self, samples_ahead=False):
        optimizer, decay = self.parts["optimizer"], self.numbers["ema_decay"]
        state = init_state(self.params, optimizer, decay, {}, samples_ahead)
        return jax.device_put(state, parameter_sharding(self.algorithm.mesh, state))

    @functools.cache  # noqa: B019
    def step(self, execution, samples_ahead=False):
        state = self.state(samples_ahead)
        return make_train_step(self.algorithm, state, execution, PhaseTimer())

    def run(self, execution, iterations=2):
        """Two iterations on the same batch: (host states, the first one first; host metrics)."""
        state = self.state()
        states, metrics = [jax.device_get(state)], []
        for _ in range(iterations):
            state, values = self.step(execution)(state, self.frozen, self.batch)
            states.append(jax.device_get(state))
            metrics.append(jax.device_get(values))
        return states, metrics


class EmptyTokenizer:
    """Knows the empty prompt, which is all zeros."""

    model_max_length = TOKENS

    def __call__(self, prompts, **options):
        return types.SimpleNamespace(input_ids=np.zeros((len(prompts), TOKENS), np.int32))

    def get_vocab(self):
        return {}


def random_networks(configs, **options):
    model, params = init_stable_diffusion(configs, jax.random.key(0), EmptyTokenizer(), **options)
    rng = np.random.default_rng(0)
    noise = lambda leaf: leaf + 0.05 * rng.standard_normal(leaf.shape).astype(np.float32)
    return model, jax.tree.map(noise, jax.device_get(params))


def make_networks(dtype=jnp.float32, **unet):
    """(model, host parameters) with weights that are all random, so that the output is not 0."""
    return random_networks({**CONFIGS, "unet": CONFIGS["unet"] | unet}, dtype=dtype)


@pytest.fixture(scope="session")
def networks():
    return make_networks()


@pytest.fixture(scope="session")
def networks_xl():
    """As `networks`, with XL's second text encoder, pooled text and sizes."""
    unet = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        # With one channel a group, normalisation would take away what the embeddings add.
        "block_out_channels": [64],
        "cross_attention_dim": 32,
        "projection_class_embeddings_input_dim": 6 * 8 + 16,
    }
    configs = {
        **CONFIGS,
        "unet": CONFIGS["unet"] | unet,
        "text_encoder_2": CONFIGS["text_encoder"],
        "pipeline": {"force_zeros_for_empty_prompt": True},
    }
    return random_networks(configs, tokenizer_2=EmptyTokenizer())


@pytest.fixture(scope="session")
def build(networks, request):
    """A function that makes a `Setup`; by default of two tasks, guided, with pretraining."""

    def make(
        tasks=2,
        batch_size=8,
        steps=3,
        devices=8,
        fsdp=1,
        optimizer=None,
        scheduler=None,
        xl=False,
        networks=networks,
        **changes,
    ):
        model, params = request.getfixturevalue("networks_xl") if xl else networks
        tokens = model.tokenize([""]).shape[1]
        assert changes.keys() <= NUMBERS.keys()
        numbers = NUMBERS | changes
        mesh = make_mesh(fsdp, jax.devices()[:devices])
        # Adam divides by the gradient's size: the large epsilon keeps its rounding from growing.
        optimizer = optimizer or optax.inject_hyperparams(optax.adamw)(3e-4, eps=1e-3)
        rng = np.random.default_rng(1)
        draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
        ids = lambda *shape: rng.integers(0, VOCABULARY, (*shape, tokens)).astype(np.int32)
        inputs = [{"offset": draw(batch_size)} for _ in range(tasks)]
        pretraining = {
            "latent_mean": draw(batch_size, *model.latent_shape),
            "latent_std": np.abs(draw(batch_size, *model.latent_shape)) / 10,
            "input_ids": ids(batch_size),
        }
        by_sample = batch_sharding(mesh)
        return Setup(
            numbers=numbers,
            parts={
                "model": model,
                "process": make_process(CONFIGS["scheduler"] | (scheduler or {}), steps),
                "rewards": (Warmth(),) * tasks,
                "optimizer": optimizer,
                "mesh": mesh,
            },
            params=params["unet"],
            frozen=jax.device_put(
                Frozen(
                    text_encoder=params["text_encoder"],
                    vae=params["vae"],
                    rewards=tuple({"scale": jnp.float32(10 * (1 - 2 * i))} for i in range(tasks)),
                    empty_ids=np.zeros(tokens, np.int32),
                ),
                replicated(mesh),
            ),
            batch=Batch(
                input_ids=jax.device_put(ids(tasks, batch_size), batch_sharding(mesh, axis=1)),
                reward_inputs=tuple(jax.device_put(inputs, by_sample)),
                pretraining=jax.device_put(pretraining, by_sample)
                if numbers["pretraining_weight"]
                else None,
            ),
        )

    return make
