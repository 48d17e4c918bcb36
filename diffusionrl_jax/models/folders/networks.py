"""Names the networks of a diffusers folder, their classes, their files and their weights."""

from collections.abc import Mapping
from typing import Any

import diffusers
from etils import epath

from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.folders.tensor_files import DIFFUSERS_STEM, open_networks

SECOND = "text_encoder_2"  # Only XL has it.
TEXT_ENCODERS = ("text_encoder", SECOND)
NETWORKS = ("unet", "vae", "text_encoder")
NETWORKS_XL = (*NETWORKS, SECOND)

CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    SECOND: ("transformers", "CLIPTextModelWithProjection"),
}
# The names of the weights' files, without the suffix.
STEMS = {
    "unet": DIFFUSERS_STEM,
    "vae": DIFFUSERS_STEM,
    "text_encoder": "model",
    SECOND: "model",
}

# The Flax VAE names its attention as PyTorch's diffusers did before 0.18. Checkpoints since then
# have to_q, and both kinds are in circulation.
vae_name = weights.substitution(
    (r"(attentions\.\d+)\.query\.", r"\1.to_q."),
    (r"(attentions\.\d+)\.key\.", r"\1.to_k."),
    (r"(attentions\.\d+)\.value\.", r"\1.to_v."),
    (r"(attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
)
RENAMES = {"unet": None, "vae": vae_name, "text_encoder": None, SECOND: None}
# From what a file calls a tensor to what the mapping calls it. The text encoder of transformers 5
# names its parts without the module that holds them.
text_name = weights.substitution((r"^(embeddings|encoder|final_layer_norm)\.", r"text_model.\1."))
STORED_RENAMES = {"vae": vae_name, "text_encoder": text_name, SECOND: text_name}
# Tensors of the rest of a CLIP model, with which text encoders are stored now and then. The second
# text encoder of XL has a projection of its own.
OTHER_TOWERS = (r"^vision_model\.", r"^visual_projection\.", r"^logit_scale$")
PASSED_OVER = {
    "text_encoder": (*weights.BUFFERS, *OTHER_TOWERS, r"^text_projection\."),
    SECOND: (*weights.BUFFERS, *OTHER_TOWERS),
}


def config_to_write(name: str, config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Returns the config.json of a network, as PyTorch's libraries read it.

    Args:
      name: the network's name, one of `NETWORKS_XL`.
      config: the fields that it has.
      dtype: the dtype in which the network's weights are stored.
    """
    library, kind = CLASSES[name]
    if library == "diffusers":
        return {**config, "_class_name": kind, "_diffusers_version": diffusers.__version__}
    return {**with_dtype(config, dtype), "architectures": [kind]}


def with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Returns a transformers config that states the dtype in which the weights are stored.

    It is the dtype that `from_pretrained(torch_dtype="auto")` opens them in. Only newer versions
    know the field `dtype`, and prefer it where both are given, so that it is dropped.
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
      templates: for each network, the tree of its parameters' shapes and dtypes.
      shardings: for each network, the tree of its parameters' shardings; None keeps all on the
        host.

    Returns:
      Each network's parameters, by its name.

    Raises:
      FileNotFoundError, UserError: see `tensor_files.open_networks` and `weights.match`.
    """
    stored = open_networks({path / name: STEMS[name] for name in templates})
    for name, rename in STORED_RENAMES.items():
        if name in stored:
            stored[name] = {rename(key): tensor for key, tensor in stored[name].items()}
    options = {
        name: {
            "template": template,
            "rename": RENAMES[name],
            "ignore": PASSED_OVER.get(name, weights.BUFFERS),
            "source": str(path / name),
        }
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
    """Returns a model's parameters by network.

    Args:
      params: {"unet", "vae", "text_encoder"}. XL's "text_encoder" holds {"text_encoder",
        "text_encoder_2"}, so that whoever samples passes all that encodes text as one tree.

    Returns:
      One tree for each of `NETWORKS`, or of `NETWORKS_XL`.
    """
    text = params["text_encoder"]
    return {**params, **text} if SECOND in text else dict(params)


def join_networks(trees: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model's parameters from its networks' own; the inverse of `split_networks`."""
    if SECOND not in trees:
        return dict(trees)
    text = {name: trees[name] for name in TEXT_ENCODERS}
    return {"unet": trees["unet"], "vae": trees["vae"], "text_encoder": text}
