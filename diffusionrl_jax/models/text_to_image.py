"""What every text-to-image model has in common: the protocol, and the families that satisfy it."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from diffusionrl_jax.data.files import read_json, resolve
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.description import Description
from diffusionrl_jax.models.folders import hub
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.stable_diffusion.description import describe
from diffusionrl_jax.models.stable_diffusion.folder import (
    load_stable_diffusion,
    save_stable_diffusion,
)
from diffusionrl_jax.models.stable_diffusion.model import StableDiffusion

Text = Any  # A tree of arrays whose first axis is the prompt's; the model alone knows what of.
INDEX = "model_index.json"
PROMPTS_AT_ONCE = 4096


class TextToImage(Protocol):
    """A model without its parameters; its methods are pure and can be jitted.

    Parameters are a mapping with the denoiser's under `denoiser_name`, and "text_encoder" and
    "vae". `stable_diffusion.model.StableDiffusion` is one.

    Attributes:
      pipeline_name: the class of its pipeline in PyTorch's diffusers, a key of `FAMILIES`.
      denoiser_name: of what is trained, as its folder names it: "unet", "transformer".
      dtype: what the denoiser computes in.
      latent_shape: of one latent, of any rank.
      image_shape: (height, width, 3) of the image that it decodes to.
      scheduler_config: what the folder says of the process that the denoiser was trained on.
      networks: their folders' names.
      configs: what the folder says of each of them, by name.
      text_encoder: the module that reads prompts.
      scaling_factor: from what the VAE encodes to latents of unit variance.
    """

    @property
    def pipeline_name(self) -> str: ...

    @property
    def denoiser_name(self) -> str: ...

    @property
    def dtype(self) -> jnp.dtype: ...

    @property
    def latent_shape(self) -> tuple[int, ...]: ...

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    @property
    def scheduler_config(self) -> Mapping[str, Any]: ...

    @property
    def networks(self) -> Sequence[str]: ...

    @property
    def configs(self) -> Mapping[str, Mapping[str, Any]]: ...

    @property
    def text_encoder(self) -> Any: ...

    @property
    def scaling_factor(self) -> float: ...

    def tokenize(self, prompts: Sequence[str], /) -> np.ndarray:
        """Token ids, int32 [n, tokens]."""
        ...

    def are_cut(self, prompts: Sequence[str], /) -> np.ndarray:
        """Which prompts are longer than what `tokenize` keeps of them, bool [n]."""
        ...

    def encode_text(self, params: Parameters, input_ids: jax.Array, /) -> Text:
        """What the denoiser is conditioned on, a tree of [n, ...] arrays."""
        ...

    def encode_empty(self, params: Parameters, input_ids: jax.Array, /) -> Text:
        """What prompts are guided away from, of the empty prompt's ids; as `encode_text`."""
        ...

    def denoise(
        self, params: Parameters, latents: jax.Array, times: jax.Array, text: Text, /
    ) -> jax.Array:
        """What the denoiser says of latents [n, ...] at times [n], for P texts of each.

        `text` has n * P rows, one sample's after another's, and so has the output, float32.
        """
        ...

    def encode(self, params: Parameters, images: jax.Array, /) -> tuple[jax.Array, jax.Array]:
        """Mean and deviation of the latents of images [n, height, width, 3] in [0, 1]."""
        ...

    def decode(self, params: Parameters, latents: jax.Array, /) -> jax.Array:
        """Images float32 [n, height, width, 3] in [0, 1] of latents [n, ...]."""
        ...

    def same_networks(self, other: "TextToImage", /) -> bool:
        """Whether both differ in their parameters alone, so that one program serves both."""
        ...


def warn_of_cut(model: TextToImage, prompts: Iterable[str], name: str) -> None:
    """Says, in one warning, how many prompts the model reads the beginning of only, if it does.

    Args:
      model: whose tokenizer cuts them.
      prompts: any number; they are read a part at a time.
      name: of the prompts, for the message.
    """
    prompts, count, cut = iter(prompts), 0, []
    while part := list(itertools.islice(prompts, PROMPTS_AT_ONCE)):
        places = np.flatnonzero(model.are_cut(part))
        count, cut = count + len(part), cut + [part[place] for place in places]
    if cut:
        logging.warning(
            "%s: %d of %d prompts are longer than what the model reads, and are cut: the first is"
            " %r.",
            *(name, len(cut), count, cut[0]),
        )


class Family(NamedTuple):
    """How the folders of a kind of model are opened and written.

    Attributes:
      describe: from what `config.model` names to its sizes, without opening its weights.
      denoiser: the name of the denoiser's folder.
      read: as `stable_diffusion.folder.load_stable_diffusion`.
      write: as `stable_diffusion.folder.save_stable_diffusion`.
    """

    describe: Callable[..., Description]
    denoiser: str
    read: Callable[..., tuple[TextToImage, dict[str, Any]]]
    write: Callable[..., None]


STABLE_DIFFUSION = Family(
    describe, StableDiffusion.denoiser_name, load_stable_diffusion, save_stable_diffusion
)
# By the pipeline's class in a folder's model_index.json.
FAMILIES = {
    "StableDiffusionPipeline": STABLE_DIFFUSION,
    "StableDiffusionXLPipeline": STABLE_DIFFUSION,
}
DENOISERS = sorted({family.denoiser for family in FAMILIES.values()})


def family_of(folder: epath.Path) -> Family:
    """The family of a folder, by its model_index.json; Stable Diffusion's where it has none.

    Raises:
      UserError: no family is known for its pipeline.
    """
    index = folder / INDEX
    name = read_json(index).get("_class_name") if index.exists() else "StableDiffusionPipeline"
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(
            f"{index}: the pipeline is of class {name}, which is not supported: use one of "
            f"{', '.join(FAMILIES)}."
        )
    return FAMILIES[name]


def describe_model(name: str, size: tuple[int, int] | None = None) -> Description:
    """The sizes of a model that is here, or published; see the family's `describe`."""
    folder = resolve(name, "config.model") if name else None
    if folder is not None and folder.exists():
        return family_of(folder).describe(name, size)
    return STABLE_DIFFUSION.describe(name, size)


def load_model(path: str, **options) -> tuple[TextToImage, dict[str, Any]]:
    """Opens a folder of any family.

    Args:
      path: a folder in diffusers' layout, local or `gs://`, or a hub id.
      **options: as of `stable_diffusion.folder.load_stable_diffusion`.

    Returns:
      The model, and its parameters.

    Raises:
      UserError, FileNotFoundError: as the family's `read`.
    """
    folder = hub.locate(path)
    return family_of(folder).read(folder, **options)


def save_model(path: epath.Path, model: TextToImage, params: Parameters, *options) -> None:
    """Writes a folder that PyTorch's diffusers opens.

    Args:
      path: the folder.
      model, params: what is written.
      *options: further arguments of `stable_diffusion.folder.save_stable_diffusion`.
    """
    FAMILIES[model.pipeline_name].write(path, model, params, *options)
