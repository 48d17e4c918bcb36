"""Says what every text-to-image model has in common: the protocol `TextToImage`.

`families.FAMILIES` holds the families of models that satisfy it.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from diffusionrl_jax.models.parameters import Parameters

# A tree of arrays whose first axis is the prompt's. Only the model knows what the arrays are.
Text = Any
PROMPTS_AT_ONCE = 4096


class TextToImage(Protocol):
    """A model without its parameters. Its methods are pure functions that can be jitted.

    The parameters are a mapping. It holds the denoiser's parameters under `denoiser_name`, the text
    encoders' under "text_encoder" and the VAE's under "vae".
    `stable_diffusion.model.StableDiffusion` satisfies this protocol.

    Attributes:
      pipeline_name: the class of the model's pipeline in PyTorch's diffusers, a key of
        `families.FAMILIES`.
      denoiser_name: the name that the model's folder gives to the network that is trained, such as
        "unet" or "transformer".
      dtype: the dtype in which the denoiser computes.
      latent_shape: the shape of one latent, of any rank.
      image_shape: the shape (height, width, 3) of the image that one latent decodes to.
      scheduler_config: what the folder says of the noise process that the denoiser was trained on.
      networks: the names of the folders of the model's networks.
      configs: what the model's folder says of each network and of the scheduler, by name.
      text_encoder: the module that reads prompts.
      vae: the module that encodes and decodes images, which has the `dtype` that it computes in.
      scaling_factor: the number by which what the VAE encodes is multiplied, so that latents have
        unit variance.
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
    def vae(self) -> Any: ...

    @property
    def scaling_factor(self) -> float: ...

    def tokenize(self, prompts: Sequence[str], /) -> np.ndarray:
        """Returns the prompts' token ids, int32 [n, tokens]."""
        ...

    def are_cut(self, prompts: Sequence[str], /) -> np.ndarray:
        """Returns which prompts are longer than what `tokenize` keeps of them, bool [n]."""
        ...

    def encode_text(self, params: Parameters, input_ids: jax.Array, /) -> Text:
        """Returns what the denoiser is conditioned on, a tree of [n, ...] arrays.

        Args:
          params: the parameters "text_encoder". Large ones may be `Shard`s, which the model gathers
            as it sees fit.
          input_ids: int32 [n, tokens], from `tokenize`.
        """
        ...

    def encode_empty(self, params: Parameters, input_ids: jax.Array, /) -> Text:
        """Returns what prompts are guided away from, for the empty prompt's ids; see
        `encode_text`.
        """
        ...

    def denoise(
        self, params: Parameters, latents: jax.Array, times: jax.Array, text: Text, /
    ) -> jax.Array:
        """Returns the denoiser's output for latents [n, ...] at times [n], with P texts for each
        latent.

        `text` has n * P rows, in which one latent's P rows come before the next one's. The output
        has the same rows, float32 [n * P, ...].
        """
        ...

    def encode(self, params: Parameters, images: jax.Array, /) -> tuple[jax.Array, jax.Array]:
        """Returns the mean and standard deviation, [n, ...] each, of the latents of images.

        Args:
          params: the parameters "vae".
          images: [n, height, width, 3] in [0, 1].
        """
        ...

    def decode(self, params: Parameters, latents: jax.Array, /) -> jax.Array:
        """Returns the images, float32 [n, height, width, 3] in [0, 1], of latents [n, ...]."""
        ...

    def same_networks(self, other: "TextToImage", /) -> bool:
        """Returns whether the two models differ in nothing but their parameters.

        One compiled program then serves both.
        """
        ...


def warn_of_cut(model: TextToImage, prompts: Iterable[str], name: str) -> None:
    """Warns, once, of how many prompts are longer than what the model reads; says nothing if none
    is. Of several processes, which have the same prompts, the first one warns.

    Args:
      model: the model whose tokenizer cuts the prompts.
      prompts: any number of prompts, which are read a part at a time.
      name: what the message calls the prompts.
    """
    prompts, count, cut = iter(prompts), 0, []
    while part := list(itertools.islice(prompts, PROMPTS_AT_ONCE)):
        places = np.flatnonzero(model.are_cut(part))
        count, cut = count + len(part), cut + [part[place] for place in places]
    if cut and jax.process_index() == 0:
        logging.warning(
            "%s: %d of %d prompts are longer than what the model reads, and are cut: the first is"
            " %r.",
            *(name, len(cut), count, cut[0]),
        )
