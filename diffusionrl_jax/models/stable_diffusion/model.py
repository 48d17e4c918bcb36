"""Stable Diffusion 1.x, 2.x and XL: text encoders, UNet and VAE as functions of their parameters.

The networks are diffusers' and transformers' Flax modules under `interceptors.py`, checked against
the PyTorch ones. A folder in diffusers' layout is both what is read and what is written.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import diffusers
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from diffusers import FlaxAutoencoderKL, FlaxUNet2DConditionModel
from etils import epath
from jax.sharding import Mesh
from transformers import CLIPTextConfig, CLIPTokenizer
from transformers.models.clip.modeling_flax_clip import (
    FlaxCLIPTextModelWithProjectionModule,
    FlaxCLIPTextModule,
)

from diffusionrl_jax.models import text_encoders
from diffusionrl_jax.models.folders import hub, weights
from diffusionrl_jax.models.folders.companions import copy_companions
from diffusionrl_jax.models.folders.networks import (
    CLASSES,
    NETWORKS,
    NETWORKS_XL,
    RENAMES,
    SECOND,
    STEMS,
    config_to_write,
    join_networks,
    read_configs,
    read_networks,
    split_networks,
)
from diffusionrl_jax.models.folders.tensor_files import write_json
from diffusionrl_jax.models.initialisation import random_parameters
from diffusionrl_jax.models.stable_diffusion import supported as checks
from diffusionrl_jax.models.stable_diffusion.interceptors import interception
from diffusionrl_jax.models.text_encoders import Conditioning, Text
from diffusionrl_jax.models.towers.clip import text_template

Parameters = Mapping[str, Any]

VAE_SCALING_FACTOR = 0.18215


@dataclasses.dataclass(frozen=True, eq=False)
class StableDiffusion:
    """The networks without their parameters; methods are pure and can be jitted.

    Attributes:
      unet, vae, text_encoder: linen modules, computing in the dtype they were built with.
      tokenizer: a CLIP tokenizer.
      configs: "unet", "vae", "text_encoder", "scheduler" -> the JSON of diffusers' folder; of XL
        also "text_encoder_2" and "pipeline", the model_index.json.
      remat: "none", "blocks" or "full"; see `interceptors.py`.
      convolution: "xla" or "taps"; see `convolution.py`.
      attention: "auto", "dot_product", "splash" or "cudnn"; see `models/attention.py`.
      mesh: over which the batch is split, for `attention`.
      text_encoder_2, tokenizer_2: XL's second pair.
    """

    unet: nn.Module
    vae: nn.Module
    text_encoder: nn.Module
    tokenizer: CLIPTokenizer
    configs: Mapping[str, Mapping[str, Any]]
    remat: str = "none"
    convolution: str = "xla"
    attention: str = "auto"
    mesh: Mesh | None = None
    text_encoder_2: nn.Module | None = None
    tokenizer_2: CLIPTokenizer | None = None

    @property
    def networks(self) -> tuple[str, ...]:
        """The folder's parts that have weights."""
        return NETWORKS if self.text_encoder_2 is None else NETWORKS_XL

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        """The noise schedule's fields (`beta_start`, `prediction_type`, ...)."""
        return self.configs["scheduler"]

    @property
    def scaling_factor(self) -> float:
        """What the VAE's latents are multiplied by, to have unit variance."""
        return self.configs["vae"].get("scaling_factor", VAE_SCALING_FACTOR)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent at the size the UNet was trained for."""
        size = self.configs["unet"]["sample_size"]
        return (self.configs["unet"]["in_channels"], size, size)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, 3) of the image that a latent of `latent_shape` decodes to."""
        size = self.latent_shape[1] * 2 ** (len(self.configs["vae"]["block_out_channels"]) - 1)
        return (size, size, 3)

    def interception(self) -> contextlib.AbstractContextManager[None]:
        """The interceptors under which `unet.apply` and `vae.apply` are to be traced."""
        return interception(
            remat=self.remat,
            convolution=self.convolution,
            attention=self.attention,
            mesh=self.mesh,
        )

    def tokenize(self, prompts: Sequence[str]) -> np.ndarray:
        """Token ids int32 [len(prompts), tokens], truncated and padded; XL's of both tokenizers."""
        ids = text_encoders.tokenize(self.tokenizer, prompts)
        if self.tokenizer_2 is None:
            return ids
        return np.concatenate([ids, text_encoders.tokenize(self.tokenizer_2, prompts)], axis=1)

    def encode_text(self, text_encoder_params: Parameters, input_ids: jax.Array) -> Text:
        """What the UNet is conditioned on.

        Args:
          text_encoder_params: the parameters "text_encoder".
          input_ids: int32 [n, tokens], from `tokenize`. Padding is attended to, as Stable Diffusion
            was trained.

        Returns:
          In the compute dtype, the last hidden state [n, tokens, width]. Of XL the `Conditioning`
          of an uncropped picture of the UNet's own size; where the folder asks for it, as the
          published one does, the empty prompt's states are zeros, which is what that model is
          guided away from.
        """
        if self.text_encoder_2 is None:
            return text_encoders.last_states(self.text_encoder, text_encoder_params, input_ids)
        ids, ids_2 = jnp.split(input_ids, [self.tokenizer.model_max_length], axis=1)
        states, _ = text_encoders.penultimate_states(
            self.text_encoder, text_encoder_params["text_encoder"], ids
        )
        states_2, pooled = text_encoders.penultimate_states(
            self.text_encoder_2, text_encoder_params[SECOND], ids_2
        )
        states = jnp.concatenate([states, states_2], axis=-1)
        if self.configs["pipeline"].get("force_zeros_for_empty_prompt", True):
            empty = jnp.all(input_ids == self.tokenize([""]), axis=1)
            states = jnp.where(empty[:, None, None], 0, states)
            pooled = jnp.where(empty[:, None], 0, pooled)
        size = self.image_shape[:2]
        time_ids = jnp.asarray([*size, 0, 0, *size], jnp.float32)
        return Conditioning(states, pooled, jnp.broadcast_to(time_ids, (len(states), 6)))

    def denoise(
        self,
        unet_params: Parameters,
        latents: jax.Array,
        timesteps: jax.Array,
        text: Text,
    ) -> jax.Array:
        """The UNet's output: noise, velocity or sample, as `prediction_type` says.

        Args:
          unet_params: the parameters "unet".
          latents: [n, channels, height, width].
          timesteps: int32 [n], training timesteps in [0, 1000).
          text: n * P prompts, from `encode_text`: P for each sample, one sample's after another's.
            What does not depend on the text is computed once for all P.

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
            output = self.unet.apply(
                {"params": unet_params}, latents, jnp.asarray(timesteps), states, added
            )
        return output.sample.astype(jnp.float32)

    def encode(self, vae_params: Parameters, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The latents' distribution.

        Args:
          vae_params: the parameters "vae".
          images: [n, height, width, 3] in [0, 1].

        Returns:
          mean and standard deviation, float32 [n, channels, height', width'] each, already
          multiplied by the scaling factor.
        """
        pixels = (2 * images - 1).transpose(0, 3, 1, 2)
        with self.interception():
            posterior = self.vae.apply(
                {"params": vae_params}, pixels, method=self.vae.encode
            ).latent_dist
        return tuple(
            self.scaling_factor * moment.astype(jnp.float32).transpose(0, 3, 1, 2)
            for moment in (posterior.mean, posterior.std)
        )

    def decode(self, vae_params: Parameters, latents: jax.Array) -> jax.Array:
        """Images from latents.

        Args:
          vae_params: the parameters "vae".
          latents: [n, channels, height, width], scaled to unit variance.

        Returns:
          float32 [n, height', width', 3], clipped to [0, 1].
        """
        # Channels last: given channels first, FlaxAutoencoderKL guesses the layout from the width.
        unscaled = latents.transpose(0, 2, 3, 1) / self.scaling_factor
        with self.interception():
            pixels = self.vae.apply({"params": vae_params}, unscaled, method=self.vae.decode).sample
        return jnp.clip((pixels.astype(jnp.float32).transpose(0, 2, 3, 1) + 1) / 2, 0, 1)


def build_stable_diffusion(
    configs: Mapping[str, Mapping[str, Any]],
    tokenizer: CLIPTokenizer,
    dtype=jnp.float32,
    *,
    tokenizer_2: CLIPTokenizer | None = None,
    **options,
) -> StableDiffusion:
    """The networks that the configs describe.

    Args:
      configs: as `StableDiffusion.configs`. The UNet's `attention_head_dim` is, in spite of its
        name, the number of heads: PyTorch and Flax agree on that.
      tokenizer: a CLIP tokenizer with `model_max_length` set.
      dtype: what the networks compute in; their parameters are float32 all the same.
      tokenizer_2: of XL's second text encoder.
      **options: `remat`, `convolution`, `attention` and `mesh` of `StableDiffusion`.

    Raises:
      ValueError: a config that Flax would compute wrongly, or networks that do not fit.
    """
    checks.check_unet(configs["unet"])
    checks.check_vae(configs["vae"])
    tokenizers = {"text_encoder": tokenizer}
    if SECOND in configs:
        tokenizers[SECOND] = tokenizer_2
    for name in tokenizers:
        checks.check_text_encoder(configs[name], name)
    text_configs = {name: CLIPTextConfig(**configs[name]) for name in tokenizers}
    text_fields = {name: config.to_dict() for name, config in text_configs.items()}
    checks.check_together(configs["unet"], configs["vae"], *text_fields.values())
    for name, config in text_configs.items():
        length = tokenizers[name].model_max_length
        if length > config.max_position_embeddings:
            raise ValueError(
                f"The tokenizer of {name} pads to {length} tokens, but the text encoder has "
                f"{config.max_position_embeddings} positions; set model_max_length in its "
                "tokenizer_config.json."
            )
    second = text_configs.get(SECOND)
    # In float16 the VAEs of 2.1 and XL overflow; bfloat16 has float32's range.
    upcast = dtype == jnp.float16 and configs["vae"].get("force_upcast", True)
    return StableDiffusion(
        unet=FlaxUNet2DConditionModel.from_config(dict(configs["unet"]), dtype=dtype),
        vae=FlaxAutoencoderKL.from_config(
            dict(configs["vae"]), dtype=jnp.float32 if upcast else dtype
        ),
        text_encoder=FlaxCLIPTextModule(text_configs["text_encoder"], dtype=dtype),
        tokenizer=tokenizer,
        configs={**configs, **text_fields},
        text_encoder_2=second and FlaxCLIPTextModelWithProjectionModule(second, dtype=dtype),
        tokenizer_2=tokenizer_2,
        **options,
    )


def init_stable_diffusion(
    configs: Mapping[str, Mapping[str, Any]],
    rng: jax.Array,
    tokenizer: CLIPTokenizer,
    dtype=jnp.float32,
    **options,
) -> tuple[StableDiffusion, dict[str, Any]]:
    """As `build_stable_diffusion`, with random parameters, to train from scratch.

    Returns:
      The model, and its parameters as float32 host arrays; see `load_stable_diffusion`.
    """
    model = build_stable_diffusion(configs, tokenizer, dtype, **options)
    return model, random_parameters(parameter_template(model), rng)


def load_stable_diffusion(
    path, dtype=jnp.float32, *, sharding: Callable | None = None, **options
) -> tuple[StableDiffusion, dict[str, Any]]:
    """Reads a folder in diffusers' layout, with safetensors weights.

    All headers are checked before any weight is read. Weights are then read one tensor at a time.

    Args:
      path: a folder with tokenizer/, text_encoder/, unet/, vae/, scheduler/ (of XL also
        tokenizer_2/, text_encoder_2/, model_index.json): local, `gs://`, or a Hugging Face hub id.
        Weights may be sharded, or stored in half precision (`*.fp16.safetensors`).
      dtype: what the networks compute in.
      sharding: from the tree of the parameters' shapes to the tree of their shardings; each is
        placed on its devices as it is read. None keeps all on the host.
      **options: `remat`, `convolution`, `attention` and `mesh` of `StableDiffusion`.

    Returns:
      The model, and its float32 parameters {"unet", "vae", "text_encoder"}; of XL "text_encoder"
      holds those of {"text_encoder", "text_encoder_2"}.

    Raises:
      FileNotFoundError: the folder or a file in it does not exist.
      ValueError: an unsupported config, or weights that do not fit it; see `folders/weights.py`.
    """
    path = hub.locate(path)
    configs, tokenizers = read_configs(path)
    model = build_stable_diffusion(configs, dtype=dtype, **tokenizers, **options)
    template = parameter_template(model)
    shardings = sharding and split_networks(sharding(template))
    return model, join_networks(read_networks(path, split_networks(template), shardings))


def save_stable_diffusion(
    path,
    model: StableDiffusion,
    params: Mapping[str, Any],
    dtype: str = "float16",
    base: epath.Path | None = None,
) -> None:
    """Writes a folder that PyTorch's `DiffusionPipeline.from_pretrained` opens.

    Args:
      path: the folder, local or remote; made where it does not exist, files in it overwritten.
      model: the model.
      params: "unet", "vae", "text_encoder" -> parameters.
      dtype: "float32", "float16" or "bfloat16": what the weights are stored as.
      base: a folder from which a safety checker is taken along; see `models/folders/companions.py`.
    """
    path = epath.Path(path)
    version = diffusers.__version__
    scheduler_class = model.scheduler_config.get("_class_name", "DDIMScheduler")
    tokenizers = {"tokenizer": model.tokenizer}
    if model.tokenizer_2 is None:
        pipeline = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False}
    else:
        pipeline = {**model.configs["pipeline"], "_class_name": "StableDiffusionXLPipeline"}
        tokenizers["tokenizer_2"] = model.tokenizer_2
    absent = () if SECOND in model.networks else ("safety_checker",)
    copied = copy_companions(base, path, dtype) if base else {}
    write_json(
        path / "scheduler" / "scheduler_config.json",
        {
            **model.scheduler_config,
            "_class_name": scheduler_class,
            "_diffusers_version": version,
        },
    )
    trees = split_networks(params)
    for name in model.networks:
        config = config_to_write(name, model.configs[name], dtype)
        write_json(path / name / "config.json", config)
        state = weights.to_pytorch(trees[name], rename=RENAMES[name])
        file = path / name / f"{STEMS[name]}.safetensors"
        weights.write_safetensors(file, state, dtype)
    for name, tokenizer in tokenizers.items():
        text_encoders.save_tokenizer(path / name, tokenizer)
    # The last, so that a folder that lacks files has no index.
    write_json(
        path / "model_index.json",
        {
            **pipeline,
            "_diffusers_version": version,
            **{name: [None, None] for name in ("feature_extractor", "image_encoder", *absent)},
            "scheduler": ["diffusers", scheduler_class],
            **{name: ["transformers", "CLIPTokenizer"] for name in tokenizers},
            **{name: list(CLASSES[name]) for name in model.networks},
            **copied,
        },
    )


def parameter_template(model: StableDiffusion) -> dict[str, Any]:
    """The shapes and dtypes of a model's parameters, as `load_stable_diffusion` returns them."""

    def template(name):
        network = getattr(model, name)
        if name in ("unet", "vae"):
            return jax.eval_shape(network.init_weights, jax.random.key(0))
        return text_template(network)

    return join_networks({name: template(name) for name in model.networks})
