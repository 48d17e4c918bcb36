"""Has the base model draw the pretraining pictures, from the prompts that it is trained on.

They keep the model near what it was, as in DreamBooth's prior preservation (2208.12242, Sec. 3.3),
and need no data. The chain ends in latents, which are kept as they are drawn.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh

from diffusionrl_jax.data import latents
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.data.prompts import PromptSource
from diffusionrl_jax.diffusion.drawing import draw_latents
from diffusionrl_jax.distributed.digests import digests
from diffusionrl_jax.distributed.mesh import batch_sharding, place, replicated
from diffusionrl_jax.distributed.microbatch import largest_divisor
from diffusionrl_jax.experiments.chain import make_chain
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.text_to_image import TextToImage

BASE = "base:"
MOST_PICTURES = 10_000_000


def picture_count(config: Config) -> int:
    """Returns how many pictures a config asks for, as `base:8192` does.

    Raises:
      UserError: it is no number, it is more than anybody draws, or it is fewer than a batch, which
        takes each of its pictures once; or there are no tasks, whose prompts are drawn.
    """
    if not config.tasks:
        raise UserError(
            f"config.pretraining.pictures={config.pretraining.pictures!r} has the tasks' prompts "
            "drawn, and config.tasks is empty: name at least one."
        )
    name = config.pretraining.pictures
    digits = name.removeprefix(BASE)
    is_number = digits.isascii() and digits.isdecimal() and len(digits) <= len(str(MOST_PICTURES))
    if not (is_number and config.batch_size <= int(digits) <= MOST_PICTURES):
        raise UserError(
            f"config.pretraining.pictures={name!r} must be {BASE} and how many pictures the base "
            f"model is to draw, at least batch_size={config.batch_size} and at most "
            f"{MOST_PICTURES}, such as {BASE}8192."
        )
    return int(digits)


@dataclasses.dataclass(frozen=True)
class BasePictures:
    """The pictures that are to be drawn.

    Attributes:
      prompts: the prompt of each picture.
      fingerprint: a digest of what the pictures depend on, beside the VAE and the tokenizer.
    """

    prompts: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.prompts)


def choose_pictures(
    config: Config,
    model: TextToImage,
    params: Mapping[str, Parameters],
    mesh: Mesh,
    sources: Sequence[PromptSource],
) -> BasePictures:
    """Chooses the pictures that a config asks for: of each task in turn the next prompt.

    Args:
      config: see `experiments/config.py`.
      model: the model that draws.
      params: the parameters of its denoiser, and "text_encoder".
      mesh: the devices that hold the parameters.
      sources: the prompts of each task.

    Raises:
      UserError: as `picture_count`.
    """
    numbers = range(picture_count(config))
    prompts = tuple(sources[index % len(sources)][index // len(sources)] for index in numbers)
    made_by = latents.fingerprint(
        {},
        json.dumps(digests(_drawing(model, params))),
        json.dumps(model.configs, sort_keys=True, default=str),
        str(jnp.dtype(model.dtype)),
        json.dumps(_sampler(config), sort_keys=True),
        json.dumps(prompts),
        str(config.seed),
    )
    return BasePictures(prompts, made_by)


def _sampler(config: Config) -> dict[str, Any]:
    """Returns the fields of the sampler that decide what is drawn.

    Those that earlier versions lacked are left out where they are as it was then, so that pictures
    that these have drawn are found.
    """
    sampler = config.sampler.to_dict()
    later = {"noise": "eta", "order": 1, "window": sampler["window"]}
    return {name: value for name, value in sampler.items() if later.get(name) != value}


def _drawing(model: TextToImage, params: Mapping[str, Parameters]) -> dict[str, Parameters]:
    """Returns the parameters of the networks that draw latents."""
    return {name: params[name] for name in (model.denoiser_name, "text_encoder")}


def draw_pictures(
    pictures: BasePictures,
    config: Config,
    model: TextToImage,
    params: Mapping[str, Parameters],
    mesh: Mesh,
    folder: str | epath.Path,
    encoder: str,
) -> None:
    """Draws pictures into a folder of latents, or what is still missing of it.

    Args:
      pictures: the pictures, from `choose_pictures` with the same arguments.
      config: the config, whose sampler, seed and microbatch are taken.
      model: the model that draws.
      params: the parameters of its denoiser, and "text_encoder".
      mesh: the devices that draw.
      folder: the folder, as in `latents.write_files`, which also says what is raised.
      encoder: the model's fingerprint, from `pretraining.model_fingerprint`.
    """
    rows, whole = batch_sharding(mesh), replicated(mesh)
    draw = jax.jit(
        functools.partial(
            draw_latents,
            model,
            make_chain(config, model),
            mesh,
            eta=config.sampler.eta,
            guidance_scale=config.sampler.guidance_scale,
            by_blocks=config.mesh.gather == "blocks",
        ),
        out_shardings=whole,
    )
    empty_ids = place(model.tokenize([""])[0], whole)
    # So many are drawn at once as in training at most, and so many that they make up a file.
    at_once = config.microbatch.sample or len(config.tasks) * config.batch_size // mesh.size
    share = max(1, min(len(pictures), latents.PICTURES_PER_FILE) // mesh.size)
    batch = mesh.size * largest_divisor(share, max(1, at_once))

    def compute(numbers: range) -> dict[str, np.ndarray]:
        ids = model.tokenize([pictures.prompts[number] for number in numbers])
        drawn = []
        for first in range(0, len(numbers), batch):
            part = ids[first : first + batch]
            filled = np.concatenate([part, np.zeros((batch - len(part), ids.shape[1]), ids.dtype)])
            indices = np.arange(batch, dtype=np.int32) + numbers[first]
            latent = draw(
                _drawing(model, params),
                place(filled, rows),
                empty_ids,
                place(indices, rows),
                config.seed,
            )
            drawn.append(np.asarray(latent)[: len(part)])
        mean = np.concatenate(drawn)
        return {"latent_mean": mean, "latent_std": np.zeros_like(mean), "input_ids": ids}

    logging.info("The base model draws %d pictures of the tasks' prompts, once.", len(pictures))
    latents.write_files(
        compute,
        len(pictures),
        pictures.fingerprint,
        folder,
        encoder,
        latents.PICTURES_PER_FILE,
        lambda done: logging.info("%d of %d pictures are drawn.", done, len(pictures)),
    )
