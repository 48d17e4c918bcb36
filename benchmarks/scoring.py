"""What scoring takes: each reward beside its PyTorch original, and beside a whole iteration."""

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import originals
import torch
from jax.sharding import Mesh
from originals.common import make_pictures

from diffusionrl_jax import assets
from diffusionrl_jax.costs import mathematics
from diffusionrl_jax.costs.compiled import compile_cost
from diffusionrl_jax.models.folders import published
from diffusionrl_jax.models.stable_diffusion.build import build_stable_diffusion, parameter_template
from diffusionrl_jax.models.text_encoders import load_clip_tokenizer
from diffusionrl_jax.rewards import REWARDS

HEAD = """| | images/s in the graph | PyTorch | ratio (range) | GFLOP an image | MB accessed |
|---|---|---|---|---|---|"""
SHARE_HEAD = """| | TFLOP an image | share of the iteration |
|---|---|---|"""


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What a reward takes.

    Attributes:
      name: in `originals.ORIGINALS`.
      ours: images per second in the graph, in each round.
      original: the same of PyTorch.
      difference: the largest between their scores.
      operations: floating-point operations an image, by the reward's definition.
      compiled_operations: the same of the program compiled for a TPU; None where there is none.
      accessed: bytes that the program reads and writes for an image; None where there is none.
    """

    name: str
    ours: tuple[float, ...]
    original: tuple[float, ...]
    difference: float
    operations: float
    compiled_operations: float | None = None
    accessed: float | None = None


def available_threads() -> int:
    """How many cores this process may run on, of which XLA uses all."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count()


def take_turns(
    first: Callable[[], object], second: Callable[[], object], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of each in every round, in turns, the order changing each round."""
    seconds = ([], [])
    for number in range(rounds):
        turns = list(zip((first, second), seconds, strict=True))
        for run, taken in turns if number % 2 else reversed(turns):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
    return seconds


def compete(name: str, *, batch: int, pixels: int, rounds: int, tiny: bool = False):
    """Lets a reward and its PyTorch original score the same pictures on this CPU.

    Each starts with prompts as text. The original starts with pictures in 8 bits on the host, the
    reward with floating point on the device, where training has them; both preprocess them.

    Args:
      name, batch, pixels, rounds, tiny: as of `measure`.

    Returns:
      The reward; the shapes of its arguments; images per second of both in each round; the largest
      difference of their scores.
    """
    torch.set_num_threads(available_threads())
    pictures = make_pictures(((pixels, pixels),) * batch)
    with tempfile.TemporaryDirectory() as temporary, jax.default_device(jax.devices("cpu")[0]):
        folder = Path(temporary)
        original = originals.make(name, folder, originals.tiny(name) if tiny else None)
        original.write(folder)
        options = {"group_size": batch} if original.reward == "statistical_parity" else {}
        reward, params = REWARDS[original.reward].load(str(folder), **options)
        prompts = [original.prompts[i % len(original.prompts)] for i in range(batch)]
        images = jnp.asarray(np.stack(pictures), jnp.float32) / 255
        arguments = jax.device_put((params, images, reward.prepare(prompts)))
        del params  # Of published sizes gigabytes.
        score = jax.jit(reward.__call__)
        ours = lambda: np.asarray(score(*arguments[:2], reward.prepare(prompts)))
        theirs = lambda: original.score(pictures, prompts, eight_bits=True)
        difference = float(np.abs(ours() - theirs()).max())
        seconds = take_turns(ours, theirs, rounds)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    speeds = [tuple(batch / taken for taken in side) for side in seconds]
    return reward, shapes, speeds, difference


def measure(
    name: str, *, batch: int, pixels: int, rounds: int, tiny: bool = False, mesh: Mesh | None = None
) -> Scoring:
    """What a reward takes on this CPU, and would take on a TPU.

    Args:
      name: in `originals.ORIGINALS`.
      batch: pictures at a time.
      pixels: height and width of a picture.
      rounds: of measurement, after one to warm up.
      tiny: random models of two layers in place of the published size.
      mesh: from `compiled.chip`, to compile for; None does not.
    """
    reward, shapes, speeds, difference = compete(
        name, batch=batch, pixels=pixels, rounds=rounds, tiny=tiny
    )
    operations = mathematics.operations(reward.__call__, *shapes) / batch
    result = Scoring(name, *speeds, difference, operations)
    if mesh is None:
        return result
    cost = compile_cost(reward.__call__, mesh, *shapes)
    return dataclasses.replace(
        result, compiled_operations=cost.operations / batch, accessed=cost.accessed / batch
    )


def iteration_operations(
    configs: Mapping[str, Mapping], steps: int, timesteps: int, guided: bool = True
) -> dict[str, float]:
    """Floating-point operations of everything in an iteration but scoring, for each image.

    By the networks' definitions: what rematerialisation computes twice is not counted. Every image
    has a picture in the pretraining step, whose latents are cached, as in the paper.

    Args:
      configs: of a Stable Diffusion, as in `models/folders/published.py`.
      steps: of sampling.
      timesteps: trained on, K.
      guided: whether every step and every gradient is guided.

    Returns:
      "sampling", "decoding", "policy gradient" and "pretraining".
    """
    tokenizer = load_clip_tokenizer(assets.resolve("asset:emoji/stable_diffusion/tokenizer"))
    model = build_stable_diffusion(configs, tokenizer, jnp.bfloat16, attention="dot_product")
    params = parameter_template(model)
    tokens = model.configs["text_encoder"]["max_position_embeddings"]
    width = model.configs["unet"]["cross_attention_dim"]
    latents = jax.ShapeDtypeStruct((1, *model.latent_shape), jnp.float32)
    timestep = jax.ShapeDtypeStruct((1,), jnp.int32)
    text = lambda prompts: jax.ShapeDtypeStruct((prompts, tokens, width), jnp.bfloat16)

    def loss(*arguments):
        return jnp.mean(jnp.square(model.denoise(*arguments)))

    passes = 2 if guided else 1
    denoise = (params["unet"], latents, timestep, text(passes))
    pretrain = (params["unet"], latents, timestep, text(1))
    return {
        "sampling": steps * mathematics.operations(model.denoise, *denoise),
        "decoding": mathematics.operations(model.decode, params["vae"], latents),
        "policy gradient": timesteps * mathematics.operations(jax.grad(loss), *denoise),
        "pretraining": mathematics.operations(jax.grad(loss), *pretrain),
    }


def paper_iteration() -> dict[str, float]:
    """`iteration_operations` of Stable Diffusion 2 at 512 pixels with the paper's settings."""
    return iteration_operations(published.CONFIGS["sd2"], steps=50, timesteps=5)


def row(result: Scoring) -> str:
    """A line of the Markdown table whose head is `HEAD`: compiled operations where there are."""
    cells = [result.name]
    if result.ours:
        ratios = [mine / its for mine, its in zip(result.ours, result.original, strict=True)]
        cells += [f"{statistics.median(side):,.4g}" for side in (result.ours, result.original)]
        cells += [f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"]
    else:
        cells += ["-"] * 3
    compiled = result.compiled_operations
    cells.append(f"{(result.operations if compiled is None else compiled) / 1e9:,.4g}")
    cells.append("-" if result.accessed is None else f"{result.accessed / 1e6:,.4g}")
    return f"| {' | '.join(cells)} |"


def share_rows(results: Sequence[Scoring], iteration: Mapping[str, float]) -> list[str]:
    """Lines of the Markdown table whose head is `SHARE_HEAD`: the iteration, then each reward."""
    total = sum(iteration.values())
    rows = [f"| {name} | {value / 1e12:.3g} | |" for name, value in iteration.items()]
    for result in results:
        share = result.operations / (total + result.operations)
        rows.append(f"| {result.name} | {result.operations / 1e12:.3g} | {share:.2%} |")
    return rows
