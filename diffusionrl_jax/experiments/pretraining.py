"""From config.pretraining to the batches of latents that the pretraining loss takes."""

import json
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh

from diffusionrl_jax.data import latent_files, latents
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.data.emoji import world
from diffusionrl_jax.data.files import as_path, in_bucket, is_utf8
from diffusionrl_jax.data.pictures import MappedPictures, RecordPictures, open_pictures
from diffusionrl_jax.data.prompt_index import cache_folder
from diffusionrl_jax.data.prompts import PromptSource
from diffusionrl_jax.distributed.mesh import batch_sharding, local_slices, place, replicated
from diffusionrl_jax.distributed.processes import in_turn
from diffusionrl_jax.experiments.base_pictures import (
    BASE,
    BasePictures,
    choose_pictures,
    draw_pictures,
)
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders.networks import TEXT_ENCODERS
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.text_encoders import text_to_arrays
from diffusionrl_jax.models.text_to_image import TextToImage

LATENTS = "latents:"
EMOJI = "emoji"
PICTURES_PER_DEVICE = 64
PIXELS_AT_ONCE = PICTURES_PER_DEVICE * 32**2  # on a device, while encoding


def open_source(name: str, model: TextToImage, data_dir: str) -> RecordPictures | MappedPictures:
    """The pictures that a config names, at the model's size.

    Args:
      name: `emoji`, or as in `pictures.open_pictures`.
      model: whose pictures are to be.
      data_dir: where the emoji world's pictures are made.

    Raises:
      UserError, FileNotFoundError: there are no such pictures.
    """
    height, width, _ = model.image_shape
    if name == EMOJI:
        if in_bucket(data_dir) or not is_utf8(data_dir):  # They are made and read on disks only,
            data_dir = str(cache_folder())  # by names in UTF-8.
        items = in_turn(lambda: world.load("train", data_dir))
        return MappedPictures(items, f"emoji {world.EmojiWorld.VERSION} {len(items)}")
    return open_pictures(name, height, width)


def model_fingerprint(model: TextToImage, vae: Parameters, mesh: Mesh) -> str:
    """What latents and token ids of a model depend on: the VAE, the tokenizer, the size."""
    vae = jax.device_put(vae, replicated(mesh))
    probe = model.tokenize(["", "A portrait of an accountant, 8 apples & umbrellas: déjà vu!"])
    return latents.fingerprint(
        vae, str(model.scaling_factor), json.dumps(probe.tolist()), str(model.image_shape)
    )


def text_fingerprint(model: TextToImage, text_encoder: Parameters, mesh: Mesh) -> str:
    """What a model's text embeddings depend on beside the token ids."""
    configs = [model.configs[name] for name in model.networks if name in TEXT_ENCODERS]
    return latents.fingerprint(
        jax.device_put(text_encoder, replicated(mesh)),
        str(jnp.dtype(model.text_encoder.dtype)),
        str([config["hidden_act"] for config in configs]),
        # What XL alone has beside the states.
        str(model.image_shape),
    )


def encode_pictures(
    source: RecordPictures | MappedPictures,
    model: TextToImage,
    vae: Parameters,
    mesh: Mesh,
    folder: str | epath.Path,
    encoder: str,
    progress: Callable[[int], None] = lambda done: None,
    text_encoder: Parameters | None = None,
) -> None:
    """Encodes pictures into a folder of latents, or what is still missing of it.

    Every process reads the pictures that its devices encode. A warning says how many of their texts
    the model reads a part of.

    Args:
      source: of `open_source`.
      model, vae: what encodes.
      mesh: over whose devices.
      folder: as of `latents.write_latents`, which also says what is raised.
      encoder: of `model_fingerprint`.
      progress: is told how many pictures are done.
      text_encoder: embeds the texts, which are then kept beside their token ids.
    """
    vae = jax.device_put(vae, replicated(mesh))
    pictures, whole = batch_sharding(mesh), replicated(mesh)
    encode = jax.jit(model.encode, out_shardings=(whole, whole))
    embed = jax.jit(
        lambda params, ids: text_to_arrays(model.encode_text(params, ids)), out_shardings=whole
    )
    gather = jax.jit(lambda ids: ids, out_shardings=whole)

    def encode_batch(images: np.ndarray, ids: np.ndarray) -> dict[str, jax.Array]:
        mean, std = encode(vae, place(images, pictures))
        ids = place(ids, pictures)
        texts = embed(text_encoder, ids) if text_encoder else {}
        return {"latent_mean": mean, "latent_std": std, "input_ids": gather(ids), **texts}

    cut = set()  # By their hashes, for there may be millions.

    def tokenize(texts: list[str]) -> np.ndarray:
        cut.update(hash(texts[place]) for place in np.flatnonzero(model.are_cut(texts)))
        return model.tokenize(texts)

    height, width, _ = model.image_shape
    per_device = max(1, min(PICTURES_PER_DEVICE, PIXELS_AT_ONCE // (height * width)))
    batch_size = per_device * mesh.size
    parts = local_slices(pictures, batch_size)
    latents.write_latents(
        source,
        encode_batch,
        tokenize,
        folder,
        encoder,
        batch_size=batch_size,
        progress=progress,
        text_model=text_fingerprint(model, text_encoder, mesh) if text_encoder else None,
        rows=[row for part in parts for row in range(part.start, part.stop)],
    )
    if cut:
        logging.warning("%d captions are longer than what the model reads, and are cut.", len(cut))


def load_pictures(
    config: Config,
    model: TextToImage,
    params: Mapping[str, Parameters],
    mesh: Mesh,
    cache_dir: str,
    sources: Sequence[PromptSource],
) -> latents.LatentDataset | None:
    """The pretraining pictures of a config as latents, encoded or drawn first if need be.

    Args:
      config: see `experiments/config.py`.
      model: what encodes.
      params: its denoiser's, "vae" and "text_encoder".
      mesh: over whose devices.
      cache_dir: where latents are kept, unless the config names a folder of them.
      sources: of each task's prompts, for pictures that the base model draws.

    Returns:
      The latents; None if the pretraining loss has no weight.

    Raises:
      UserError, FileNotFoundError: there are no such pictures, or latents of another model.
    """
    name = config.pretraining.pictures
    if not config.pretraining.weight:
        return None
    encoder = model_fingerprint(model, params["vae"], mesh)
    if name.startswith(LATENTS):
        folder = as_path(name.removeprefix(LATENTS), f"config.pretraining.pictures={LATENTS}")
        dataset = latents.LatentDataset(folder)
        if dataset.model != encoder:
            raise UserError(
                f"config.pretraining.pictures={name!r} was encoded by another VAE or tokenizer, or"
                f" at another size, than config.model={config.model!r}: run"
                f" {latent_files.COMMAND} for this config."
            )
        found = dataset.text_model
        if found and found != text_fingerprint(model, params["text_encoder"], mesh):
            raise UserError(
                f"The text embeddings of config.pretraining.pictures={name!r} are of another text"
                f" encoder than config.model={config.model!r} has, or of another config.dtype: run"
                f" {latent_files.COMMAND} for this config, or without --text_embeddings."
            )
        return dataset
    if name.startswith(BASE):
        source = choose_pictures(config, model, params, mesh, sources)
    else:
        source = open_source(name, model, cache_dir)
    # Other pictures or another model: another folder.
    key = latents.fingerprint({}, source.fingerprint, encoder)
    folder = epath.Path(cache_dir) / f"latents-{key[:16]}"
    if isinstance(source, BasePictures):
        draw_pictures(source, config, model, params, mesh, folder, encoder)
    else:
        encode_pictures(source, model, params["vae"], mesh, folder, encoder)
    return latents.LatentDataset(folder, "start the same command again, which makes it anew")


def pretraining_batch(
    dataset: latents.LatentDataset, step: int, batch_size: int, seed: int, mesh: Mesh
) -> dict[str, jax.Array]:
    """The pictures of an iteration, of which every process reads those of its devices alone.

    Args:
      dataset: the latents.
      step: the iteration, from 0.
      batch_size: how many, as many as samples of a task.
      seed: of the order.
      mesh: over whose devices the batch is split.

    Returns:
      The fields of `LatentDataset.batch`, global arrays [batch_size, ...].
    """
    sharding = batch_sharding(mesh)
    bounds = lambda index: index[0].indices(batch_size)[:2]
    parts = {
        (rows.start, rows.stop): dataset.batch(step, batch_size, seed, rows)
        for rows in local_slices(sharding, batch_size)
    }

    def field(name: str, shape: tuple[int, ...]) -> jax.Array:
        return jax.make_array_from_callback(
            (batch_size, *shape), sharding, lambda index: parts[bounds(index)][name]
        )

    return {name: field(name, shape) for name, shape in dataset.shapes().items()}
