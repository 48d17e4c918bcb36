"""Stable Diffusion 3, 3.5 and FLUX: their networks as functions of their parameters.

A folder in diffusers' layout is both what is read and what is written.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from diffusionrl_jax.data.stored_tensors import StoredTensor
from diffusionrl_jax.distributed.shards import gather_shards
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models import text_encoders
from diffusionrl_jax.models.attention import attend
from diffusionrl_jax.models.folders.networks import same_configs
from diffusionrl_jax.models.mmdit.flux import FluxTransformer
from diffusionrl_jax.models.mmdit.joint import JointTransformer
from diffusionrl_jax.models.mmdit.pipelines import PIPELINES, Pipeline
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.stable_diffusion import autoencoder
from diffusionrl_jax.models.stable_diffusion.autoencoder import vae_factor
from diffusionrl_jax.models.stable_diffusion.interceptors import interception
from diffusionrl_jax.models.t5 import T5Encoder
from diffusionrl_jax.models.text_encoders import Conditioning


def latent_size(
    configs: Mapping[str, Mapping[str, Any]], size: tuple[int, int] | None
) -> tuple[int, int]:
    """Returns the height and width of a latent.

    Args:
      configs: as `MMDiT.configs`.
      size: height and width in pixels; None is the size that the transformer was trained for.

    Raises:
      UserError: such latents are no whole patches.
    """
    if size is None:
        fixed = PIPELINES[configs["pipeline"]["_class_name"]].sample_size
        side = fixed or configs["transformer"]["sample_size"]
        if side % patch_size(configs):
            raise UserError(
                f"transformer/config.json: sample_size is {side}, which is no multiple of the "
                f"patches' {patch_size(configs)}: set the pictures' height and width."
            )
        return side, side
    factor = vae_factor(configs["vae"])
    unit = factor * patch_size(configs)
    for name, side in zip(("height", "width"), size, strict=True):
        if side < unit or side % unit:
            nearest = max(1, round(side / unit)) * unit
            raise UserError(
                f"A picture's {name} of {side} pixels must be a multiple of {unit}, the pixels of "
                f"a patch: use {nearest}."
            )
    return size[0] // factor, size[1] // factor


def patch_size(configs: Mapping[str, Mapping[str, Any]]) -> int:
    """Returns how many rows, and columns, of latents a token stands for, by `MMDiT.configs`."""
    pipeline = PIPELINES[configs["pipeline"]["_class_name"]]
    return pipeline.patch_size or configs["transformer"]["patch_size"]


@dataclasses.dataclass(frozen=True, eq=False)
class MMDiT:
    """The networks of a multimodal diffusion transformer (2403.03206) without their parameters.

    Its methods are pure functions that can be jitted. It satisfies `text_to_image.TextToImage`.

    Attributes:
      transformer: the sizes of the transformer.
      vae: the VAE, a linen module that computes in the dtype that it was built with.
      encoders: the text encoders by their names: linen modules, and a `T5Encoder`.
      tokenizers: the tokenizer of each.
      configs: the fields of the JSON files of diffusers' folder, under each network's name,
        "scheduler" and, those of model_index.json, "pipeline".
      text_tokens: how many tokens T5 reads.
      position_table: what the folder has of tokens' places, which is written as it was read; FLUX
        has nothing.
      convolution: "auto", "xla" or "taps"; see `stable_diffusion/convolution.py`.
      attention: "auto", "dot_product", "splash" or "cudnn"; see `models/attention.py`.
      mesh: the devices over which the batch is split, for `attention`.
      size: the height and width of the pictures in pixels; None means the transformer's own size.
    """

    transformer: JointTransformer | FluxTransformer
    vae: nn.Module
    encoders: Mapping[str, Any]
    tokenizers: Mapping[str, PreTrainedTokenizerBase]
    configs: Mapping[str, Mapping[str, Any]]
    text_tokens: int
    position_table: np.ndarray | StoredTensor | None = None
    convolution: str = "xla"
    attention: str = "auto"
    mesh: Mesh | None = None
    size: tuple[int, int] | None = None

    denoiser_name = "transformer"

    @property
    def embedded_guidance(self) -> float | None:
        """The scale of guidance that the transformer takes as an input; None if it takes none."""
        return getattr(self.transformer, "guidance", None)

    @property
    def pipeline_name(self) -> str:
        """The class of the model's pipeline in PyTorch's diffusers."""
        return self.configs["pipeline"]["_class_name"]

    @property
    def pipeline(self) -> Pipeline:
        """What the model's folder holds."""
        return PIPELINES[self.pipeline_name]

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype in which the transformer computes."""
        return self.transformer.dtype

    @property
    def text_encoder(self) -> Any:
        """The first of the text encoders."""
        return self.encoders["text_encoder"]

    @property
    def networks(self) -> tuple[str, ...]:
        """The names of the folder's parts that have weights."""
        return tuple(name for name in self.pipeline.kinds if name in self.configs)

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        """The fields of the scheduler, with those that the times follow from beside them."""
        _, rows, columns = self.latent_shape
        tokens = rows * columns // patch_size(self.configs) ** 2
        spacing = self.pipeline.timestep_spacing
        return {
            **self.configs["scheduler"],
            "image_tokens": tokens,
            "timestep_spacing": spacing,
        }

    @property
    def scaling_factor(self) -> float:
        """The number that the VAE's latents are multiplied by, so that they have unit variance."""
        return self.configs["vae"]["scaling_factor"]

    @property
    def shift_factor(self) -> float:
        """The number that is taken from the VAE's latents before that."""
        return self.configs["vae"].get("shift_factor") or 0.0

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape (channels, height, width) of a latent."""
        return (self.configs["vae"]["latent_channels"], *latent_size(self.configs, self.size))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (height, width, 3) of the image that a latent of `latent_shape` decodes to."""
        _, height, width = self.latent_shape
        factor = vae_factor(self.configs["vae"])
        return (factor * height, factor * width, 3)

    def _length(self, encoder: str) -> int:
        """Returns how many tokens a text encoder reads."""
        is_t5 = isinstance(self.encoders[encoder], T5Encoder)
        return self.text_tokens if is_t5 else self.tokenizers[encoder].model_max_length

    def tokenize(self, prompts: Sequence[str]) -> np.ndarray:
        """Returns the prompts' token ids, truncated and padded, int32 [len(prompts), tokens].

        The ids of the tokenizers follow each other in each row.
        """
        ids = [
            text_encoders.tokenize(tokenizer, prompts, self._length(name))
            for name, tokenizer in self.tokenizers.items()
        ]
        return np.concatenate(ids, axis=1)

    def are_cut(self, prompts: Sequence[str]) -> np.ndarray:
        """Returns which prompts no text encoder reads to their end, bool [len(prompts)].

        Where T5 reads them, that CLIP's text encoders do not is how these models were trained.
        """
        cut = [
            text_encoders.are_cut(tokenizer, prompts, self._length(name))
            for name, tokenizer in self.tokenizers.items()
        ]
        return np.all(cut, axis=0)

    def encode_text(self, text_encoder_params: Parameters, input_ids: jax.Array) -> Conditioning:
        """Returns what the transformer is conditioned on.

        Args:
          text_encoder_params: the parameters "text_encoder", a tree for each text encoder. Large
            ones may be `Shard`s.
          input_ids: int32 [n, tokens], from `tokenize`. Padding is attended to, as the published
            models were trained.

        Returns:
          For Stable Diffusion 3 the states of the CLIP encoders before the last layer, side by
          side, followed by T5's along the tokens; and the CLIP encoders' projected states, side by
          side. The zeros that stand for a T5 that is left out are one token, to which `denoise`
          attends as if it were all of them. For FLUX the states of T5, and the state of the end of
          CLIP's text.
        """
        ends = np.cumsum([self._length(name) for name in self.encoders])[:-1]
        ids = dict(zip(self.encoders, jnp.split(input_ids, ends, axis=1), strict=True))
        clips, pooled, long = [], [], None
        for name, encoder in self.encoders.items():
            params = text_encoder_params[name]
            if isinstance(encoder, T5Encoder):
                long = encoder.encode(params, ids[name])
                continue
            params = gather_shards(params, after=ids[name])
            if self.pipeline.reads_clip_states:
                states, end = text_encoders.penultimate_states(encoder, params, ids[name])
                clips.append(states)
                pooled.append(end)
            else:
                pooled.append(text_encoders.pooled_state(encoder, params, ids[name]))
        if clips:
            long = self._after(jnp.concatenate(clips, axis=-1), long)
        assert long is not None  # There is T5, or CLIP.
        return Conditioning(long, jnp.concatenate(pooled, axis=-1))

    def _after(self, short: jax.Array, long: jax.Array | None) -> jax.Array:
        """Returns CLIP's states, filled up with zeros, and T5's, or its zeros, after them.

        CLIP's module adds its layers up in float32: rounded as the transformer reads them, the
        states take half of that.
        """
        width = self.configs["transformer"]["joint_attention_dim"]
        short = short.astype(self.transformer.dtype)
        short = jnp.pad(short, ((0, 0), (0, 0), (0, width - short.shape[-1])))
        if long is None:
            long = jnp.zeros((len(short), min(self.text_tokens, 1), width), short.dtype)
        return jnp.concatenate([short, long], axis=1)

    def encode_empty(self, text_encoder_params: Parameters, input_ids: jax.Array) -> Conditioning:
        """Returns what prompts are guided away from: what `encode_text` returns."""
        return self.encode_text(text_encoder_params, input_ids)

    @property
    def _key_bias(self) -> np.ndarray | None:
        """What is added to the logits of the text's tokens.

        k tokens that are equal stay equal, since texts have no places. Attention to them is that to
        one of them, whose logit is larger by the logarithm of k.
        """
        if len(self.encoders) == len(self.pipeline.tokenizers) or not self.text_tokens:
            return None
        tokens = self._length("text_encoder")
        return np.array([0.0] * tokens + [math.log(self.text_tokens)], np.float32)

    def denoise(
        self, params: Parameters, latents: jax.Array, times: jax.Array, text: Conditioning
    ) -> jax.Array:
        """Returns the transformer's output, the velocity: noise minus clean latents.

        Args:
          params: the parameters "transformer".
          latents: [n, channels, height, width].
          times: [n], 0 for clean latents to 1 for noise.
          text: n * P prompts from `encode_text`, P for each sample; one sample's come before the
            next one's.

        Returns:
          float32 [n * P, channels, height, width].
        """
        # Text and picture together are no whole blocks.
        kernel = functools.partial(attend, attention=self.attention, mesh=self.mesh, fills_up=True)
        return self.transformer.denoise(params, latents, times, text, kernel, self._key_bias)

    def _interception(self) -> contextlib.AbstractContextManager[None]:
        return interception(convolution=self.convolution, attention=self.attention, mesh=self.mesh)

    def encode(self, vae_params: Parameters, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the distribution of images' latents.

        Args:
          vae_params: the parameters "vae".
          images: [n, height, width, 3] in [0, 1].

        Returns:
          The mean and the standard deviation, float32 [n, channels, height', width'] each, of
          latents that are shifted and scaled.
        """
        with self._interception():
            mean, std = autoencoder.encode(self.vae, vae_params, images, self.scaling_factor)
        return mean - self.scaling_factor * self.shift_factor, std

    def decode(self, vae_params: Parameters, latents: jax.Array) -> jax.Array:
        """Returns the images that latents decode to.

        Args:
          vae_params: the parameters "vae".
          latents: [n, channels, height, width], shifted and scaled to unit variance.

        Returns:
          float32 [n, height', width', 3], clipped to [0, 1].
        """
        latents = latents + self.scaling_factor * self.shift_factor
        with self._interception():
            return autoencoder.decode(self.vae, vae_params, latents, self.scaling_factor)

    @property
    def _places(self) -> np.ndarray:
        """The embedding of tokens' places, which is empty where there is none."""
        return getattr(self.transformer, "positions", np.zeros(0))

    def same_networks(self, other: object) -> bool:
        """Returns whether the two models differ in nothing but their parameters.

        One compiled program then serves both.
        """
        if not isinstance(other, MMDiT) or self.tokenizers.keys() != other.tokenizers.keys():
            return False
        same_words = all(
            tokenizer.get_vocab() == other.tokenizers[name].get_vocab()
            for name, tokenizer in self.tokenizers.items()
        )
        same_places = np.array_equal(self._places, other._places)
        same_sizes = (self.latent_shape, self.text_tokens) == (
            other.latent_shape,
            other.text_tokens,
        )
        same_fields = same_configs(self.configs, other.configs)
        return same_words and same_places and same_sizes and same_fields
