"""Stable Diffusion 1.x, 2.x and XL: text encoders, UNet and VAE as functions of their parameters.

The networks are diffusers' and transformers' Flax modules under `interceptors.py`, checked against
the PyTorch ones. A folder in diffusers' layout is both what is read and what is written.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from transformers import CLIPTokenizerFast

from diffusionrl_jax.distributed.shards import gather_shards
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models import text_encoders
from diffusionrl_jax.models.folders.networks import (
    NETWORKS,
    NETWORKS_XL,
    SECOND,
    same_configs,
)
from diffusionrl_jax.models.parameters import Parameters, apply
from diffusionrl_jax.models.stable_diffusion import autoencoder
from diffusionrl_jax.models.stable_diffusion.autoencoder import vae_factor
from diffusionrl_jax.models.stable_diffusion.interceptors import interception
from diffusionrl_jax.models.text_encoders import Conditioning, Text

VAE_SCALING_FACTOR = 0.18215


def latent_size(
    configs: Mapping[str, Mapping[str, Any]], size: tuple[int, int] | None
) -> tuple[int, int]:
    """Returns the height and width of a latent.

    Args:
      configs: those of "unet" and "vae" among them.
      size: height and width in pixels; None is the size that the UNet was trained for.

    Raises:
      UserError: a side is no multiple of the VAE's factor.
    """
    if size is None:
        return (configs["unet"]["sample_size"],) * 2
    factor = vae_factor(configs["vae"])
    for name, side in zip(("height", "width"), size, strict=True):
        if side < factor or side % factor:
            nearest = max(1, round(side / factor)) * factor
            raise UserError(
                f"A picture's {name} of {side} pixels must be a multiple of {factor}, by which the "
                f"VAE makes latents smaller: use {nearest}."
            )
    return size[0] // factor, size[1] // factor


@dataclasses.dataclass(frozen=True, eq=False)
class StableDiffusion:
    """The networks of Stable Diffusion without their parameters.

    Its methods are pure functions that can be jitted. It satisfies `text_to_image.TextToImage`.

    Attributes:
      unet: the UNet, a linen module that computes in the dtype that it was built with.
      vae: the VAE, likewise.
      text_encoder: the text encoder, likewise.
      tokenizer: the text encoder's CLIP tokenizer.
      configs: the fields of the JSON files of diffusers' folder, under "unet", "vae",
        "text_encoder" and "scheduler"; for XL also under "text_encoder_2" and, those of
        model_index.json, "pipeline".
      remat: "none", "blocks" or "full"; see `interceptors.py`.
      convolution: "auto", "xla" or "taps"; see `convolution.py`.
      attention: "auto", "dot_product", "splash" or "cudnn"; see `models/attention.py`.
      mesh: the devices over which the batch is split, for `attention`.
      text_encoder_2: XL's second text encoder; None in other models.
      tokenizer_2: the tokenizer of XL's second text encoder; None in other models.
      size: the height and width of the pictures in pixels; None means the UNet's own size.
    """

    unet: nn.Module
    vae: nn.Module
    text_encoder: nn.Module
    tokenizer: CLIPTokenizerFast
    configs: Mapping[str, Mapping[str, Any]]
    remat: str = "none"
    convolution: str = "xla"
    attention: str = "auto"
    mesh: Mesh | None = None
    text_encoder_2: nn.Module | None = None
    tokenizer_2: CLIPTokenizerFast | None = None
    size: tuple[int, int] | None = None

    denoiser_name = "unet"

    @property
    def pipeline_name(self) -> str:
        """The class of the model's pipeline in PyTorch's diffusers."""
        xl = self.text_encoder_2 is not None
        return "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype in which the UNet computes."""
        return self.unet.dtype

    @property
    def networks(self) -> tuple[str, ...]:
        """The names of the folder's parts that have weights."""
        return NETWORKS if self.text_encoder_2 is None else NETWORKS_XL

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        """The fields of the noise schedule (`beta_start`, `prediction_type`, ...)."""
        return self.configs["scheduler"]

    @property
    def scaling_factor(self) -> float:
        """The number that the VAE's latents are multiplied by, so that they have unit variance."""
        return self.configs["vae"].get("scaling_factor", VAE_SCALING_FACTOR)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape (channels, height, width) of a latent."""
        return (self.configs["unet"]["in_channels"], *latent_size(self.configs, self.size))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (height, width, 3) of the image that a latent of `latent_shape` decodes to."""
        _, height, width = self.latent_shape
        factor = vae_factor(self.configs["vae"])
        return (factor * height, factor * width, 3)

    def interception(self) -> contextlib.AbstractContextManager[None]:
        """Returns the interceptors under which `unet.apply` and `vae.apply` are to be traced."""
        return interception(
            remat=self.remat,
            convolution=self.convolution,
            attention=self.attention,
            mesh=self.mesh,
        )

    def tokenize(self, prompts: Sequence[str]) -> np.ndarray:
        """Returns the prompts' token ids, truncated and padded, int32 [len(prompts), tokens].

        For XL, the ids of the second tokenizer follow those of the first in each row.
        """
        ids = text_encoders.tokenize(self.tokenizer, prompts)
        if self.tokenizer_2 is None:
            return ids
        return np.concatenate([ids, text_encoders.tokenize(self.tokenizer_2, prompts)], axis=1)

    def are_cut(self, prompts: Sequence[str]) -> np.ndarray:
        """Returns which prompts are longer than the ids of `tokenize`, bool [len(prompts)].

        For XL, it is enough that one of the two tokenizers cuts them.
        """
        cut = text_encoders.are_cut(self.tokenizer, prompts)
        if self.tokenizer_2 is None:
            return cut
        return cut | text_encoders.are_cut(self.tokenizer_2, prompts)

    def encode_text(self, text_encoder_params: Parameters, input_ids: jax.Array) -> Text:
        """Returns what the UNet is conditioned on.

        Args:
          text_encoder_params: the parameters "text_encoder". Large ones may be `Shard`s.
          input_ids: int32 [n, tokens], from `tokenize`. Padding is attended to, as Stable Diffusion
            was trained.

        Returns:
          The last hidden state [n, tokens, width], in the compute dtype. For XL it is the
          `Conditioning` of an uncropped picture of the size that is drawn.
        """
        text_encoder_params = gather_shards(text_encoder_params, after=input_ids)
        if self.text_encoder_2 is None:
            return text_encoders.last_states(self.text_encoder, text_encoder_params, input_ids)
        ids, ids_2 = jnp.split(input_ids, [self.tokenizer.model_max_length], axis=1)
        states, _ = text_encoders.penultimate_states(
            self.text_encoder, text_encoder_params["text_encoder"], ids
        )
        states_2, pooled = text_encoders.penultimate_states(
            self.text_encoder_2, text_encoder_params[SECOND], ids_2
        )
        assert pooled is not None  # XL's second encoder has a projection.
        states = jnp.concatenate([states, states_2], axis=-1)
        size = self.image_shape[:2]
        time_ids = jnp.asarray([*size, 0, 0, *size], jnp.float32)
        return Conditioning(states, pooled, jnp.broadcast_to(time_ids, (len(states), 6)))

    def encode_empty(self, text_encoder_params: Parameters, input_ids: jax.Array) -> Text:
        """Returns what prompts are guided away from.

        Args:
          text_encoder_params: the parameters "text_encoder".
          input_ids: the empty prompt's ids, int32 [n, tokens].

        Returns:
          What `encode_text` returns, but for XL zeros if the folder asks for them, as the published
          one does. A prompt that happens to be empty is encoded like any other.
        """
        text = self.encode_text(text_encoder_params, input_ids)
        if not isinstance(text, Conditioning):
            return text
        if not self.configs["pipeline"].get("force_zeros_for_empty_prompt", True):
            return text
        zeros = {"states": jnp.zeros_like(text.states), "pooled": jnp.zeros_like(text.pooled)}
        return dataclasses.replace(text, **zeros)

    def denoise(
        self,
        unet_params: Parameters,
        latents: jax.Array,
        timesteps: jax.Array,
        text: Text,
    ) -> jax.Array:
        """Returns the UNet's output: noise, velocity or sample, as `prediction_type` states.

        Args:
          unet_params: the parameters "unet".
          latents: [n, channels, height, width].
          timesteps: training timesteps in [0, 1000), int32 [n].
          text: n * P prompts from `encode_text`, P for each sample; one sample's come before the
            next one's. What does not depend on the text is computed once for all P.

        Returns:
          float32 [n * P, channels, height, width].
        """
        pooled = isinstance(text, Conditioning)
        states, added = text.states if pooled else text, None
        chex.assert_is_divisible(len(states), len(latents))
        if pooled:
            added = {"text_embeds": text.pooled, "time_ids": text.time_ids}
            # The pooled text enters with the time, at the first layer.
            passes = len(states) // len(latents)
            latents, timesteps = (jnp.repeat(x, passes, axis=0) for x in (latents, timesteps))
        with self.interception():
            output = apply(
                self.unet, {"params": unet_params}, latents, jnp.asarray(timesteps), states, added
            )
        return output.sample.astype(jnp.float32)

    def encode(self, vae_params: Parameters, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the distribution of images' latents.

        Args:
          vae_params: the parameters "vae".
          images: [n, height, width, 3] in [0, 1].

        Returns:
          The mean and the standard deviation, float32 [n, channels, height', width'] each, already
          multiplied by the scaling factor.
        """
        with self.interception():
            return autoencoder.encode(self.vae, vae_params, images, self.scaling_factor)

    def decode(self, vae_params: Parameters, latents: jax.Array) -> jax.Array:
        """Returns the images that latents decode to.

        Args:
          vae_params: the parameters "vae".
          latents: [n, channels, height, width], scaled to unit variance.

        Returns:
          float32 [n, height', width', 3], clipped to [0, 1].
        """
        with self.interception():
            return autoencoder.decode(self.vae, vae_params, latents, self.scaling_factor)

    def same_networks(self, other: object) -> bool:
        """Returns whether the two models differ in nothing but their parameters.

        One compiled program then serves both.
        """
        if not isinstance(other, StableDiffusion):
            return False
        same_words = self.tokenizer.get_vocab() == other.tokenizer.get_vocab()
        same_size = self.latent_shape == other.latent_shape
        return same_words and same_size and same_configs(self.configs, other.configs)
