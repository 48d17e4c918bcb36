"""Stable Diffusion 1.x and 2.x: text encoder, UNet and VAE as pure functions of their parameters.

The networks are diffusers' and transformers' Flax modules under `models/interceptors.py`, checked
against the PyTorch ones. A folder in diffusers' layout is both what is read and what is written.
"""

import contextlib
import dataclasses
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from diffusers import FlaxAutoencoderKL, FlaxUNet2DConditionModel
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh
from transformers import CLIPTextConfig, CLIPTokenizer
from transformers.models.clip.modeling_flax_clip import FlaxCLIPTextModule

from diffusionrl_jax.models import configs as checks
from diffusionrl_jax.models import weights
from diffusionrl_jax.models.interceptors import interception

Parameters = Mapping[str, Any]

NETWORKS = ("unet", "vae", "text_encoder")
WEIGHT_FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
}
VAE_SCALING_FACTOR = 0.18215

# Leaf name -> standard deviation from the parameter's shape, for training from scratch.
INITIALISED = {
    "kernel": lambda shape: math.prod(shape[:-1]) ** -0.5,
    "embedding": lambda shape: 0.02,
}
# Standard deviation of a standard normal cut off at -2 and 2.
TRUNCATED_DEVIATION = 0.87962566

# The Flax VAE names its attention as PyTorch diffusers did before 0.18; its checkpoints since then
# say to_q, and both kinds are in circulation.
_vae_name = weights.substitution(
    (r"(attentions\.\d+)\.query\.", r"\1.to_q."),
    (r"(attentions\.\d+)\.key\.", r"\1.to_k."),
    (r"(attentions\.\d+)\.value\.", r"\1.to_v."),
    (r"(attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
)
RENAMES = {"unet": None, "vae": _vae_name, "text_encoder": None}


@dataclasses.dataclass(frozen=True, eq=False)
class StableDiffusion:
    """The networks without their parameters; methods are pure and can be jitted.

    Attributes:
      unet, vae, text_encoder: linen modules, computing in the dtype they were built with.
      tokenizer: a CLIP tokenizer.
      configs: "unet", "vae", "text_encoder", "scheduler" -> the JSON of diffusers' folder.
      remat: "none", "blocks" or "full"; see `models/interceptors.py`.
      convolution: "xla" or "taps"; see `models/convolution.py`.
      attention: "auto", "dot_product" or "splash"; see `models/attention.py`.
      mesh: over which the batch is split, for `attention`.
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
        """Token ids int32 [len(prompts), model_max_length], truncated and padded."""
        ids = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="np",
        ).input_ids
        return ids.astype(np.int32)

    def encode_text(self, text_encoder_params: Parameters, input_ids: jax.Array) -> jax.Array:
        """The text encoder's last hidden state.

        Args:
          text_encoder_params: the parameters "text_encoder".
          input_ids: int32 [n, tokens]. Padding is attended to, as Stable Diffusion was trained.

        Returns:
          [n, tokens, width] in the compute dtype.
        """
        positions = jnp.broadcast_to(jnp.arange(input_ids.shape[-1]), input_ids.shape)
        return self.text_encoder.apply(
            {"params": text_encoder_params}, input_ids, jnp.ones_like(input_ids), positions
        ).last_hidden_state

    def denoise(
        self,
        unet_params: Parameters,
        latents: jax.Array,
        timesteps: jax.Array,
        text_embeddings: jax.Array,
    ) -> jax.Array:
        """The UNet's output: noise, velocity or sample, as `prediction_type` says.

        Args:
          unet_params: the parameters "unet".
          latents: [n, channels, height, width].
          timesteps: int32 [n], training timesteps in [0, 1000).
          text_embeddings: [n, tokens, width].

        Returns:
          float32 [n, channels, height, width].
        """
        with self.interception():
            output = self.unet.apply(
                {"params": unet_params}, latents, jnp.asarray(timesteps), text_embeddings
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
    **options,
) -> StableDiffusion:
    """The networks that the configs describe.

    Args:
      configs: "unet", "vae", "text_encoder", "scheduler" -> the JSON of diffusers' folder. The
        UNet's `attention_head_dim` is, in spite of its name, the number of heads: PyTorch and Flax
        agree on that.
      tokenizer: a CLIP tokenizer with `model_max_length` set.
      dtype: what the networks compute in; their parameters are float32 all the same.
      **options: `remat`, `convolution`, `attention` and `mesh` of `StableDiffusion`.

    Raises:
      ValueError: a config that Flax would compute wrongly, or networks that do not fit.
    """
    checks.check_unet(configs["unet"])
    checks.check_vae(configs["vae"])
    text_config = CLIPTextConfig(**configs["text_encoder"])
    checks.check_together(configs["unet"], configs["vae"], text_config.to_dict())
    if tokenizer.model_max_length > text_config.max_position_embeddings:
        raise ValueError(
            f"The tokenizer pads to {tokenizer.model_max_length} tokens, but the text encoder has "
            f"{text_config.max_position_embeddings} positions; set model_max_length in "
            "tokenizer/tokenizer_config.json."
        )
    return StableDiffusion(
        unet=FlaxUNet2DConditionModel.from_config(dict(configs["unet"]), dtype=dtype),
        vae=FlaxAutoencoderKL.from_config(dict(configs["vae"]), dtype=dtype),
        text_encoder=FlaxCLIPTextModule(text_config, dtype=dtype),
        tokenizer=tokenizer,
        configs={**configs, "text_encoder": text_config.to_dict()},
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

    Kernels are drawn as Flax draws them by default (truncated normal, variance 1 / fan in),
    embeddings with CLIP's standard deviation of 0.02; biases are 0 and scales 1.

    Returns:
      The model, and its parameters {"unet", "vae", "text_encoder"} as float32 host arrays.
    """
    model = build_stable_diffusion(configs, tokenizer, dtype, **options)
    # One draw for all: the modules' own initialisers, one random graph for each of hundreds of
    # parameters, take a minute to compile even for a tiny model.
    flat = traverse_util.flatten_dict(_template(model))
    drawn = {path: leaf.shape for path, leaf in flat.items() if path[-1] in INITIALISED}
    ends = np.cumsum([math.prod(shape) for shape in drawn.values()])
    normal = np.asarray(jax.random.truncated_normal(rng, -2, 2, (int(ends[-1]),), jnp.float32))
    values = dict(zip(drawn, np.split(normal / TRUNCATED_DEVIATION, ends[:-1]), strict=True))
    params = {}
    for path, leaf in flat.items():
        if path in values:
            deviation = INITIALISED[path[-1]](leaf.shape)
            params[path] = np.float32(deviation) * values[path].reshape(leaf.shape)
        else:
            params[path] = np.full(leaf.shape, path[-1] == "scale", np.float32)
    return model, traverse_util.unflatten_dict(params)


def load_stable_diffusion(
    path, dtype=jnp.float32, **options
) -> tuple[StableDiffusion, dict[str, Any]]:
    """Reads a folder in diffusers' layout, with safetensors weights.

    Args:
      path: a local or remote folder with tokenizer/, text_encoder/, unet/, vae/, scheduler/.
      dtype: what the networks compute in.
      **options: `remat`, `convolution`, `attention` and `mesh` of `StableDiffusion`.

    Returns:
      The model, and its parameters {"unet", "vae", "text_encoder"} as float32 host arrays.

    Raises:
      FileNotFoundError: the folder or a file in it does not exist.
      ValueError: an unsupported config, or weights that do not fit it; see `models/weights.py`.
    """
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist. A model on the Hugging Face hub must be downloaded first: "
            "hf download <id> --local-dir <folder>."
        )
    if (path / "text_encoder_2").exists():
        raise ValueError(f"{path} is a Stable Diffusion XL folder; only 1.x and 2.x are supported.")
    configs = {name: weights.read_json(path / name / "config.json") for name in NETWORKS}
    configs["scheduler"] = weights.read_json(path / "scheduler" / "scheduler_config.json")
    model = build_stable_diffusion(configs, _load_tokenizer(path / "tokenizer"), dtype, **options)
    template = _template(model)
    params = {}
    for name in NETWORKS:
        file = path / name / WEIGHT_FILES[name]
        state = weights.read_safetensors(file)
        if name == "vae":
            state = {_vae_name(key): tensor for key, tensor in state.items()}
        params[name] = weights.to_flax(
            state, template[name], rename=RENAMES[name], source=str(file)
        )
    return model, params


def save_stable_diffusion(
    path, model: StableDiffusion, params: Mapping[str, Any], dtype: str = "float16"
) -> None:
    """Writes a folder that PyTorch's `StableDiffusionPipeline.from_pretrained` opens.

    Args:
      path: the folder, local or remote; made where it does not exist, files in it overwritten.
      model: the model.
      params: "unet", "vae", "text_encoder" -> parameters.
      dtype: "float32", "float16" or "bfloat16": what the weights are stored as.
    """
    path = epath.Path(path)
    version = diffusers.__version__
    scheduler_class = model.scheduler_config.get("_class_name", "DDIMScheduler")
    _write_json(
        path / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": version,
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", scheduler_class],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            **{name: list(CLASSES[name]) for name in NETWORKS},
        },
    )
    _write_json(
        path / "scheduler" / "scheduler_config.json",
        {
            **model.scheduler_config,
            "_class_name": scheduler_class,
            "_diffusers_version": version,
        },
    )
    for name in NETWORKS:
        library, kind = CLASSES[name]
        about = (
            {"_class_name": kind, "_diffusers_version": version}
            if library == "diffusers"
            else {"architectures": [kind]}
        )
        _write_json(path / name / "config.json", {**model.configs[name], **about})
        state = weights.to_pytorch(params[name], rename=RENAMES[name])
        weights.write_safetensors(path / name / WEIGHT_FILES[name], state, dtype)
    _save_tokenizer(path / "tokenizer", model.tokenizer)


def _template(model: StableDiffusion) -> dict[str, Any]:
    """The parameters' shapes and dtypes."""
    ids = jax.ShapeDtypeStruct((1, model.tokenizer.model_max_length), jnp.int32)

    def initialise(rng, ids):
        return {
            "unet": model.unet.init_weights(rng),
            "vae": model.vae.init_weights(rng),
            "text_encoder": model.text_encoder.init(rng, ids, ids, ids)["params"],
        }

    return jax.eval_shape(initialise, jax.random.key(0), ids)


def _write_json(path: epath.Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _load_tokenizer(folder: epath.Path) -> CLIPTokenizer:
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist; the folder is incomplete.")
    # transformers reads local folders only.
    with tempfile.TemporaryDirectory() as local:
        for file in folder.iterdir():
            (epath.Path(local) / file.name).write_bytes(file.read_bytes())
        return CLIPTokenizer.from_pretrained(local)


def _save_tokenizer(folder: epath.Path, tokenizer: CLIPTokenizer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as local:
        tokenizer.save_pretrained(local)
        for file in epath.Path(local).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
