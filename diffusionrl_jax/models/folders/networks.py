"""The networks of a diffusers folder: their names, classes, files, and names of weights."""

from collections.abc import Mapping
from typing import Any

import diffusers
from etils import epath
from transformers import CLIPTokenizerFast

from diffusionrl_jax.data.files import read_json
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.folders.tensor_files import open_networks
from diffusionrl_jax.models.text_encoders import load_clip_tokenizer

SECOND = "text_encoder_2"  # of XL alone
TEXT_ENCODERS = ("text_encoder", SECOND)
NETWORKS = ("unet", "vae", "text_encoder")
NETWORKS_XL = (*NETWORKS, SECOND)

CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    SECOND: ("transformers", "CLIPTextModelWithProjection"),
}
# The weights' files, without the suffix.
STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    SECOND: "model",
}

# The Flax VAE names its attention as PyTorch diffusers did before 0.18; its checkpoints since then
# say to_q, and both kinds are in circulation.
vae_name = weights.substitution(
    (r"(attentions\.\d+)\.query\.", r"\1.to_q."),
    (r"(attentions\.\d+)\.key\.", r"\1.to_k."),
    (r"(attentions\.\d+)\.value\.", r"\1.to_v."),
    (r"(attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
)
RENAMES = {"unet": None, "vae": vae_name, "text_encoder": None, SECOND: None}


def read_configs(path: epath.Path) -> tuple[dict[str, Any], dict[str, CLIPTokenizerFast]]:
    """Reads what a diffusers folder says of its networks, without their weights.

    Returns:
      The JSON of each network, of "scheduler", and of XL of "pipeline"; and the options "tokenizer"
      and, of XL, "tokenizer_2" of `stable_diffusion.build_stable_diffusion`.

    Raises:
      FileNotFoundError: a file does not exist.
      UserError: a folder that is not supported.
    """
    names = NETWORKS_XL if (path / SECOND).exists() else NETWORKS
    if SECOND in names and not (path / "text_encoder").exists():
        raise UserError(f"{path} only has XL's second text encoder: refiners are not supported.")
    configs = {name: read_json(path / name / "config.json") for name in names}
    configs["scheduler"] = read_json(path / "scheduler" / "scheduler_config.json")
    tokenizers = {"tokenizer": load_clip_tokenizer(path / "tokenizer")}
    if SECOND in names:
        configs["pipeline"] = read_json(path / "model_index.json")
        tokenizers["tokenizer_2"] = load_clip_tokenizer(path / "tokenizer_2")
    return configs, tokenizers


def config_to_write(name: str, config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The config.json of a network.

    Args:
      name: of the network, one of `NETWORKS_XL`.
      config: its fields.
      dtype: what its weights are stored as.
    """
    library, kind = CLASSES[name]
    if library == "diffusers":
        return {**config, "_class_name": kind, "_diffusers_version": diffusers.__version__}
    return {**with_dtype(config, dtype), "architectures": [kind]}


def with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A transformers config that says what the weights are stored as.

    It is what `from_pretrained(torch_dtype="auto")` opens them as. Only newer versions know the
    name `dtype`, and prefer it where both are given.
    """
    others = {name: value for name, value in config.items() if name != "dtype"}
    return {**others, "torch_dtype": dtype}


def read_networks(
    path: epath.Path, templates: Mapping[str, Any], shardings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Reads the weights of a diffusers folder, one tensor after another.

    The headers of all files are checked before any tensor is read.

    Args:
      path: the folder, local or remote.
      templates: network -> the tree of its parameters' shapes and dtypes.
      shardings: network -> the tree of their shardings; None keeps all on the host.

    Returns:
      Network -> parameters.

    Raises:
      FileNotFoundError, UserError: see `tensor_files.open_networks` and `weights.match`.
    """
    stored = open_networks({path / name: STEMS[name] for name in templates})
    if "vae" in stored:
        stored["vae"] = {vae_name(key): tensor for key, tensor in stored["vae"].items()}
    options = {
        name: {"template": template, "rename": RENAMES[name], "source": str(path / name)}
        for name, template in templates.items()
    }
    for name in templates:
        weights.match(stored[name], **options[name])
    shardings = shardings or dict.fromkeys(templates)
    return {
        name: weights.to_flax(stored[name], shardings=shardings[name], **options[name])
        for name in templates
    }


def split_networks(params: Mapping[str, Any]) -> dict[str, Any]:
    """A model's parameters by network.

    Args:
      params: {"unet", "vae", "text_encoder"}, where XL's "text_encoder" holds {"text_encoder",
        "text_encoder_2"}: whoever samples passes all that encodes text as one tree.

    Returns:
      One tree for each of `NETWORKS`, or of `NETWORKS_XL`.
    """
    text = params["text_encoder"]
    return {**params, **text} if SECOND in text else dict(params)


def join_networks(trees: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `split_networks`."""
    if SECOND not in trees:
        return dict(trees)
    text = {name: trees[name] for name in TEXT_ENCODERS}
    return {"unet": trees["unet"], "vae": trees["vae"], "text_encoder": text}
