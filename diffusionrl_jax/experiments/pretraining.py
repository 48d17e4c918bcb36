"""Makes the batches of latents that the pretraining loss takes, from config.pretraining."""

import json
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh

from diffusionrl_jax.algorithms import pairs_of
from diffusionrl_jax.data import latent_files, latents
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.data.emoji import world
from diffusionrl_jax.data.files import as_path, in_bucket, is_utf8
from diffusionrl_jax.data.pairs import ChosenPictures
from diffusionrl_jax.data.pictures import MappedPictures, RecordPictures, open_pictures
from diffusionrl_jax.data.prompt_index import cache_folder
from diffusionrl_jax.data.prompts import PromptSource
from diffusionrl_jax.distributed.digests import digests
from diffusionrl_jax.distributed.mesh import batch_sharding, local_slices, place, replicated
from diffusionrl_jax.distributed.processes import gather, in_turn
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
MEND = "start the same command again, which makes it anew"
EMOJI = "emoji"
PICTURES_PER_DEVICE = 64
PIXELS_AT_ONCE = PICTURES_PER_DEVICE * 32**2  # On a device, while it encodes.


def open_source(name: str, model: TextToImage, data_dir: str) -> RecordPictures | MappedPictures:
    """Opens the pictures that a config names, at the model's size.

    Args:
      name: `emoji`, or a name that `pictures.open_pictures` takes.
      model: the model whose size the pictures are to have.
      data_dir: the folder in which the emoji world's pictures are made.

    Raises:
      UserError, FileNotFoundError: there are no such pictures.
    """
    height, width, _ = model.image_shape
    if name == EMOJI:
        # They are made and read on disks alone, and by names in UTF-8.
        if in_bucket(data_dir) or not is_utf8(data_dir):
            data_dir = str(cache_folder())
        items = in_turn(lambda: world.load("train", data_dir))
        fingerprint = f"emoji {world.EmojiWorld.VERSION} {len(items)}"
        return MappedPictures(items, fingerprint, height, width)
    return open_pictures(name, height, width)


def model_fingerprint(model: TextToImage, vae: Parameters, mesh: Mesh) -> str:
    """Returns a digest of what a model's latents and token ids depend on.

    They depend on the VAE and the dtype that it computes in, the tokenizer, and the size of
    pictures.
    """
    probe = model.tokenize(["", "A portrait of an accountant, 8 apples & umbrellas: déjà vu!"])
    names = [str(model.scaling_factor), json.dumps(probe.tolist()), str(model.image_shape)]
    # Only what is unusual is named, so that older latents of most models are still known.
    if shift := model.configs["vae"].get("shift_factor"):
        names.append(f"shift {shift}")
    if (dtype := jnp.dtype(model.vae.dtype)) != jnp.float32:
        names.append(f"computed in {dtype}")
    return latents.fingerprint(jax.device_put(vae, replicated(mesh)), *names)


def text_fingerprint(model: TextToImage, text_encoder: Parameters) -> str:
    """Returns a digest of what a model's text embeddings depend on, beside the token ids.

    The parameters are read where they lie: T5 whole would fill a chip.
    """
    configs = [model.configs[name] for name in model.networks if name in TEXT_ENCODERS]
    return latents.fingerprint(
        {},
        json.dumps(digests(text_encoder)),
        str(jnp.dtype(model.text_encoder.dtype)),
        str([config.get("hidden_act") for config in configs]),  # T5 has but one.
        # XL alone conditions on the size too, beside the states.
        str(model.image_shape),
    )


def encode_pictures(
    source: latents.Pictures,
    model: TextToImage,
    vae: Parameters,
    mesh: Mesh,
    folder: str | epath.Path,
    encoder: str,
    progress: Callable[[int], None] = lambda done: None,
    text_encoder: Parameters | None = None,
) -> None:
    """Encodes pictures into a folder of latents, or what is still missing of it.

    Every process reads the pictures that its devices encode. A warning says how many of the texts
    are longer than what the model reads.

    Args:
      source: the pictures, from `open_source`.
      model, vae: the model that encodes, and its VAE's parameters.
      mesh: the devices that encode.
      folder: the folder, as in `latents.write_latents`, which also says what is raised.
      encoder: the model's fingerprint, from `model_fingerprint`.
      progress: is told how many pictures are done.
      text_encoder: the parameters that embed the texts, whose embeddings are then kept beside their
        token ids; None keeps the ids alone.
    """
    vae = jax.device_put(vae, replicated(mesh))
    pictures, whole = batch_sharding(mesh), replicated(mesh)
    encode = jax.jit(model.encode, out_shardings=(whole, whole))
    embed = jax.jit(
        lambda params, ids: text_to_arrays(model.encode_text(params, ids)), out_shardings=whole
    )
    everywhere = jax.jit(lambda ids: ids, out_shardings=whole)

    def encode_batch(images: np.ndarray, ids: np.ndarray) -> dict[str, jax.Array]:
        mean, std = encode(vae, place(images, pictures))
        ids = place(ids, pictures)
        texts = embed(text_encoder, ids) if text_encoder else {}
        return {"latent_mean": mean, "latent_std": std, "input_ids": everywhere(ids), **texts}

    cut = set()  # It holds hashes of the texts, since there may be millions.

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
        text_model=text_fingerprint(model, text_encoder) if text_encoder else None,
        rows=[row for part in parts for row in range(part.start, part.stop)],
    )
    # Each process has read its own pictures.
    count = int(gather(np.array(len(cut))).sum())
    if count and jax.process_index() == 0:
        logging.warning("%d captions are longer than what the model reads, and are cut.", count)


def load_pictures(
    config: Config,
    model: TextToImage,
    params: Mapping[str, Parameters],
    mesh: Mesh,
    cache_dir: str,
    sources: Sequence[PromptSource],
) -> latents.LatentDataset | None:
    """Opens the pretraining pictures of a config as latents, encoded or drawn first if need be.

    Args:
      config: see `experiments/config.py`.
      model: the model that encodes or draws.
      params: the parameters of its denoiser, "vae" and "text_encoder".
      mesh: the devices.
      cache_dir: the folder in which latents are kept, unless the config names a folder of them.
      sources: the prompts of each task, for pictures that the base model draws.

    Returns:
      The latents; None if the pretraining loss has no weight.

    Raises:
      UserError, FileNotFoundError: there are no such pictures, or they are latents of another
        model.
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
                f"config.pretraining.pictures={name!r} was encoded by another VAE or tokenizer, at"
                f" another size or in another config.dtype than config.model={config.model!r}: run"
                f" {latent_files.COMMAND} for this config."
            )
        found = dataset.text_model
        if found and found != text_fingerprint(model, params["text_encoder"]):
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
    folder = _folder(source.fingerprint, encoder, cache_dir)
    if isinstance(source, BasePictures):
        draw_pictures(source, config, model, params, mesh, folder, encoder)
    else:
        encode_pictures(source, model, params["vae"], mesh, folder, encoder)
    return latents.LatentDataset(folder, MEND)


def open_pairs(config: Config, model: TextToImage) -> ChosenPictures | None:
    """Opens the files of the pairs that a config's method learns from, and reads no picture yet.

    Args:
      config: see `experiments/config.py`.
      model: the model whose size the pictures will have.

    Returns:
      The pictures; None if the method learns from no pairs.

    Raises:
      UserError, FileNotFoundError: there are no such files, or none with a pair in it.
    """
    if (pairs := pairs_of(config)) is None:
        return None
    field, name = pairs
    height, width, _ = model.image_shape
    return ChosenPictures(name, height, width, field)


def load_pairs(
    source: ChosenPictures | None, model: TextToImage, vae: Parameters, mesh: Mesh, cache_dir: str
) -> latents.LatentDataset | None:
    """Opens the latents of pairs of pictures, which are encoded first if need be.

    Args:
      source: the pictures; None opens none.
      model, vae: the model that encodes, and its VAE's parameters.
      mesh: the devices that encode.
      cache_dir: the folder in which latents are kept.

    Returns:
      The latents, of which neighbours are pairs, the chosen picture first; None for no pictures.

    Raises:
      UserError: a picture cannot be read.
    """
    if source is None:
        return None
    encoder = model_fingerprint(model, vae, mesh)
    folder = _folder(source.fingerprint, encoder, cache_dir)
    encode_pictures(source, model, vae, mesh, folder, encoder)
    return latents.LatentDataset(folder, MEND)


def _folder(pictures: str, encoder: str, cache_dir: str) -> epath.Path:
    """Returns the folder of pictures' latents: others, or another model, have another one."""
    key = latents.fingerprint({}, pictures, encoder)
    return epath.Path(cache_dir) / f"latents-{key[:16]}"


def pretraining_batch(
    dataset: latents.LatentDataset,
    step: int,
    batch_size: int,
    seed: int,
    mesh: Mesh,
    together: int = 1,
) -> dict[str, jax.Array]:
    """Returns the pictures of an iteration. Every process reads only those of its own devices.

    Args:
      dataset: the latents.
      step: the iteration's number, from 0.
      batch_size: how many pictures, which is as many as samples of a task.
      seed: the seed of their order.
      mesh: the devices over which the batch is split.
      together: as in `LatentDataset.batch`.

    Returns:
      The fields of `LatentDataset.batch`, as global arrays [batch_size, ...].
    """
    sharding = batch_sharding(mesh)
    bounds = lambda index: index[0].indices(batch_size)[:2]
    parts = {
        (rows.start, rows.stop): dataset.batch(step, batch_size, seed, rows, together)
        for rows in local_slices(sharding, batch_size)
    }

    def field(name: str, shape: tuple[int, ...]) -> jax.Array:
        return jax.make_array_from_callback(
            (batch_size, *shape), sharding, lambda index: parts[bounds(index)][name]
        )

    return {name: field(name, shape) for name, shape in dataset.shapes().items()}
