"""Estimates what an experiment takes on each chip, by arithmetic on its config.

It compiles and traces nothing. It reads configs and the headers of weights' files from the disk.
For what is not on the disk, the published checkpoint's sizes are taken.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusionrl_jax import assets
from diffusionrl_jax.algorithms import needs_of
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.diffusion.guidance import passes
from diffusionrl_jax.experiments import checks, shared_prefix
from diffusionrl_jax.experiments.algorithm import needs_base, updates_per_iteration
from diffusionrl_jax.experiments.assembly import judges
from diffusionrl_jax.learning.adaptation import make_lora
from diffusionrl_jax.models.description import Description
from diffusionrl_jax.models.families import describe_model
from diffusionrl_jax.models.folders import published, tensor_files
from diffusionrl_jax.models.parameters import count
from diffusionrl_jax.rewards.scorers import HOST_REWARD, WEIGHTED_SUM, is_on_host

FLOAT = 4  # The bytes of a float32.
# A reward network holds at most so many times the bytes of an image for each image.
IMAGES_OF_A_REWARD = 16
# The bytes that OWLv2 holds for each image: it attends from 3,601 tokens to as many, in float32.
OWLV2_IMAGE = 2.5 * 2**30
# For LoRA of a UNet: how many numbers the factors have for each of its parameters and each rank,
# and the bytes of the gradients of the kernels that they change, for each of these parameters.
FACTORS, CHANGED = 1 / 4000, 0.3
# Of a stack of blocks: the bytes of each number of a changed kernel, and of its gradient.
CHANGED_OF_STACK = 2 * FLOAT
# What differentiating an image's reward holds, as a multiple of what decoding and scoring do.
DIFFERENTIATED = 1.85
# What part of a stack's parameters the compiler copies, into the order in which a loop takes them.
COPIED = 0.5


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of an experiment.

    Attributes:
      model: the sizes of the networks.
      trained: the number of parameters that are trained.
      copies: how many float32 numbers the train state has for each of these.
      rewards: the number of parameters of each task's reward.
      judges: the number of parameters of each reward that evaluation scores by and no task does.
      rewarded, judged: the bytes that scoring an image takes, for each task and each of these.
      passes: how many passes of the denoiser a sample takes at each step.
      itemsize: the bytes of a number in the dtype that the denoiser computes in.
      kernel: whether attention to many tokens runs as a kernel that holds no probabilities.
      latent, image, text: the bytes of one of them; those of the text are for all passes.
      decoded: the bytes that decoding an image takes.
      steps: how many steps of a sample's chain are kept.
      updates: the number of updates on samples, of all tasks.
      tasks: the number of tasks.
      changed: the bytes that an update holds of the kernels that LoRA's factors change.
      kept_of_example, predictions, reward_gradient, chain_gradient: as in `Needs`.
      lora, on_host: whether there is LoRA, a reward on the host.
      pretrains: how many updates are on pictures that are not drawn.
      holds_base: whether iterations take the denoiser that training started from.
      split_frozen: as `config.mesh.split_frozen`.
      group: for how many samples an update runs the denoiser once.
    """

    model: Description
    trained: int
    copies: int
    rewards: tuple[int, ...]
    judges: tuple[int, ...]
    rewarded: tuple[float, ...]
    judged: tuple[float, ...]
    passes: int
    itemsize: int
    kernel: bool
    latent: int
    image: int
    text: int
    decoded: float
    steps: int
    updates: int
    tasks: int
    kept_of_example: int
    predictions: int
    reward_gradient: bool
    pretrains: int
    holds_base: bool
    lora: bool
    on_host: bool
    split_frozen: bool
    chain_gradient: bool = False
    group: int = 1
    changed: float = 0.0

    @property
    def stacked(self) -> bool:
        """Whether the denoiser is a stack of blocks, run by a loop."""
        return self.model.denoiser_shapes is not None


def _count(tensors: Mapping[str, Any]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


def _reward(scorer: Config) -> int:
    """Returns the number of a reward's parameters."""
    if scorer.reward == WEIGHTED_SUM:
        return sum(map(_reward, scorer.options.scorers.values()))
    if scorer.reward == HOST_REWARD or not scorer.path:
        return 0
    folder = assets.resolve(scorer.path)
    if folder.exists():
        return sum(_count(tensor_files.read_header(file)) for file in folder.glob("*.safetensors"))
    return published.REWARD_PARAMETERS.get("owlv2" if _is_owlv2(scorer) else scorer.reward, 0)


def _is_owlv2(scorer: Config) -> bool:
    if scorer.reward == WEIGHTED_SUM:
        return any(map(_is_owlv2, scorer.options.scorers.values()))
    return scorer.reward in ("detection", "requested_objects") and "owlv2" in scorer.path.lower()


def sizes(config: Config, kernel: bool) -> Sizes:
    """Returns the sizes of a config's experiment.

    Args:
      config: see `experiments/config.py`.
      kernel: whether `config.attention` "auto" means a kernel.

    Raises:
      UserError, FileNotFoundError: there is no such model, or it is not supported.
    """
    model = describe_model(config.model, checks.size(config), config.sampler.text_tokens or None)
    itemsize = jnp.dtype(config.dtype).itemsize
    needs = needs_of(config)
    # Pairs of pictures are learned from without guidance.
    number = passes(config.sampler.guidance_scale)
    number = 1 if needs.pairs and not config.pretraining.weight else number
    image = FLOAT * model.image
    scoring = lambda scorer: OWLV2_IMAGE if _is_owlv2(scorer) else image * IMAGES_OF_A_REWARD
    apart = [scorer for scorer, _ in judges(config)]
    trained, changed = _trained(config, model)
    on_host = any(is_on_host(task.scorer) for task in config.tasks.values())
    ahead = on_host and config.overlap_scoring
    sums = config.optimizer.one_step and updates_per_iteration(config) > 1
    return Sizes(
        model=model,
        trained=trained,
        copies=3 + sums + bool(config.ema_decay) + ahead + bool(needs.follower),
        rewards=tuple(_reward(task.scorer) for task in config.tasks.values()),
        judges=tuple(_reward(scorer) for scorer in apart),
        rewarded=tuple(scoring(task.scorer) for task in config.tasks.values()),
        judged=tuple(map(scoring, apart)),
        passes=number,
        itemsize=itemsize,
        kernel=kernel if config.attention == "auto" else config.attention in ("splash", "cudnn"),
        latent=FLOAT * model.latent,
        image=image,
        text=itemsize * number * model.text,
        decoded=model.decoded(itemsize),
        steps=needs.steps,
        updates=0 if needs.pairs else needs.updates,
        tasks=len(config.tasks),
        kept_of_example=needs.kept_of_example,
        predictions=needs.predictions,
        reward_gradient=needs.reward_gradient,
        pretrains=bool(config.pretraining.weight) + needs.updates * needs.pairs,
        holds_base=needs_base(config),
        lora=bool(config.lora.rank),
        on_host=on_host,
        split_frozen=config.mesh.split_frozen,
        chain_gradient=needs.chain_gradient,
        group=shared_prefix.group_size(config),
        changed=changed,
    )


def _trained(config: Config, model: Description) -> tuple[int, float]:
    """Returns how many parameters are trained, and `Sizes.changed`."""
    lora = make_lora(config)
    if lora is None:
        return model.denoiser, 0.0
    if model.denoiser_shapes is None:
        return int(model.denoiser * lora.rank * FACTORS), CHANGED * model.denoiser
    shapes = model.denoiser_shapes()
    factors = jax.eval_shape(lambda: lora.init(shapes, seed=0))
    kernels = sum(math.prod(kernel.shape) for kernel in lora.kernels(shapes).values())
    return count(factors), CHANGED_OF_STACK * kernels


@dataclasses.dataclass(frozen=True)
class Division:
    """How an experiment is divided over chips, and over time.

    Attributes:
      chips: the number of chips.
      share: how many samples of a task each chip has.
      fsdp: over how many chips large parameters are split.
      sample, decode, score, train, differentiate: how many samples a chip takes at a time.
      remat, gather: as `config.remat` and `config.mesh.gather`, but not "auto".
    """

    chips: int
    share: int
    fsdp: int
    sample: int
    decode: int
    score: int
    train: int
    remat: str
    gather: str = "whole"
    differentiate: int = 0


def held(sizes: Sizes, division: Division, trains: bool = True) -> float:
    """Returns the bytes that each chip holds throughout.

    They are those of the parameters, of the train state, and of the latents of pictures.

    Args:
      sizes, division, trains: as in `needed`.
    """
    frozen_split = division.fsdp if sizes.split_frozen else 1
    denoiser, frozen = sizes.model.denoiser, sizes.model.text_encoder + sizes.model.vae
    frozen += sum(sizes.rewards) + sum(sizes.judges)
    # Where nothing is trained, a checkpoint's parameters are held beside those of the base model.
    state = sizes.copies * sizes.trained if trains else denoiser
    base = denoiser if sizes.holds_base or not trains else 0
    pictures = 2 * division.share * sizes.latent if trains and sizes.pretrains else 0
    return FLOAT * (state + base) / division.fsdp + FLOAT * frozen / frozen_split + pictures


def _gradient(sizes: Sizes, division: Division, by_blocks: bool) -> float:
    """Returns the bytes of the gradient of all microbatches, and of what lies beside it.

    Args:
      sizes, division: as in `needed`.
      by_blocks: whether the denoiser is gathered by blocks.
    """
    if by_blocks:
        # The whole gradient of a block is summed in float32.
        of_block = (sizes.itemsize + FLOAT) * sizes.model.network.largest_block
        copied = COPIED if sizes.stacked else 0
        summed = sizes.changed if sizes.lora else FLOAT * (1 + copied) * sizes.trained
        return of_block + summed / division.fsdp
    if sizes.lora:
        return sizes.changed
    if division.train >= division.share:  # One microbatch's is split as it is made.
        return FLOAT * sizes.trained / division.fsdp
    # What a loop over the blocks gives is whole before it is added to the whole sum.
    beside = sizes.itemsize if sizes.stacked else 0
    return (FLOAT + beside) * sizes.trained


def needed(sizes: Sizes, division: Division, trains: bool = True) -> dict[str, float]:
    """Returns the bytes that are needed on each chip in each phase of an iteration.

    "whole step" is for all phases as one program, "evaluate" for an evaluation after it.

    Args:
      sizes: the experiment's sizes.
      division: how it is divided.
      trains: whether it is trained, or only sampled and scored.
    """
    always, share = held(sizes, division, trains), division.share
    is_split, is_cast = division.fsdp > 1, sizes.itemsize < FLOAT
    # Split parameters are whole where they are used, the denoiser's kernels in the dtype that it
    # computes in. Where they are whole already, the compiler casts them before the loop.
    whole = lambda number: FLOAT * number if is_split and sizes.split_frozen else 0
    cast_anyway = lambda number: sizes.itemsize * number if is_cast else 0
    denoiser, text_encoder = sizes.model.denoiser, sizes.model.text_encoder
    by_blocks = division.gather == "blocks" and is_split
    # A block is gathered while the one before is used.
    two_blocks = 2 * sizes.itemsize * sizes.model.network.largest_block
    in_full = sizes.itemsize * denoiser if is_split else cast_anyway(denoiser)
    cast = two_blocks if by_blocks else in_full
    is_encoder_split = is_split and sizes.split_frozen
    cast_text = sizes.itemsize * text_encoder if is_encoder_split else cast_anyway(text_encoder)
    if by_blocks and is_encoder_split:
        cast_text = sizes.itemsize * sizes.model.largest_encoder

    forward = sizes.passes * sizes.model.network.forward(sizes.itemsize, sizes.kernel)
    merged = sizes.changed / 2 / division.fsdp if by_blocks else 0

    def draw_and_score(samples, kept, scored, images, networks, rewarded):
        sampling = min(division.sample, samples) * forward
        # By blocks, prompts are read before the denoiser is gathered.
        used = max(cast_text, cast + sampling) if by_blocks else cast_text + cast + sampling
        decoding = min(division.decode, samples) * sizes.decoded
        scoring = networks + 2 * images * sizes.image + max(decoding, scored * rewarded)
        # What the loop over microbatches leaves is held twice, as it is put in order.
        return {"sample": always + used + merged + 2 * kept, "score": always + kept + scoring}

    # Evaluation draws few images at a time, keeps no step of a chain, and has all scorers.
    block, at_once = division.sample, min(division.score, division.sample)
    networks = whole(sizes.model.vae) + whole(max((*sizes.rewards, *sizes.judges), default=0))
    most = max((*sizes.rewarded, *sizes.judged), default=0)
    kept = block * (sizes.text + sizes.latent)
    evaluation = draw_and_score(block, kept, at_once, block, networks, most)
    if not trains:
        return evaluation

    samples = share * sizes.tasks
    drawn = samples * (2 * sizes.steps * sizes.latent + sizes.text + sizes.latent)
    in_parts = division.score < share and not sizes.on_host
    scored, most = min(division.score, share), max(sizes.rewarded, default=0)
    networks = whole(sizes.model.vae) + whole(max(sizes.rewards, default=0))
    images = scored if in_parts else samples
    phases = draw_and_score(samples, drawn, scored, images, networks, most)
    phases["evaluate"] = max(evaluation.values())

    count = sizes.updates + sizes.pretrains
    updates = count * share * (1 + sizes.kept_of_example) * sizes.latent
    text = share * (sizes.tasks + sizes.pretrains) * sizes.text
    read = cast_text if is_encoder_split else 0
    captions = read + 2 * share * sizes.text if sizes.pretrains else 0
    reference = cast + min(division.train, share) * forward if sizes.predictions else 0
    differentiating = min(division.differentiate, share) * (sizes.image + most + sizes.decoded)
    backwards = 0
    if sizes.reward_gradient:  # The backward pass takes a copy of the reward's parameters.
        copied = FLOAT * max(sizes.rewards, default=0)
        backwards = networks + copied + DIFFERENTIATED * differentiating
    together = cast + _gradient(sizes, division, by_blocks)
    backward = sizes.model.network.backward(division.remat, sizes.itemsize, sizes.kernel)
    # Pictures of the pretraining loss stand for themselves.
    group = 1 if sizes.pretrains else sizes.group
    activations = min(division.train, share) / group * sizes.passes * backward
    one = share * (3 * sizes.latent + sizes.text)
    # Through the chain a gradient is pulled back as in an update, but for the parameters' own.
    chain = in_full + activations if sizes.chain_gradient else 0
    phases["prepare"] = always + drawn + updates + text
    phases["prepare"] += max(captions, reference, backwards, chain)
    phases["update"] = always + updates + text + one + together + activations
    # One program frees the samples later, and keeps the cast parameters of both loops.
    phases["whole step"] = phases["update"] + drawn + cast
    return phases
