"""Names the networks of a diffusers folder, their classes, their files and their weights."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
from etils import epath

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.folders.tensor_files import DIFFUSERS_STEM, open_networks

INDEX = "model_index.json"
SCHEDULER = "scheduler"
SECOND, THIRD = "text_encoder_2", "text_encoder_3"
TEXT_ENCODERS = ("text_encoder", SECOND, THIRD)
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
    THIRD: "model",
    "transformer": DIFFUSERS_STEM,
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


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a network is stored.

    Attributes:
      library, name: its class in PyTorch.
      stem: the name of the weights' file, without the suffix.
      rename: takes what `weights.pytorch_name` says, and returns what the mapping calls a tensor.
      stored_rename: takes what a file calls a tensor, and returns what the mapping calls it.
      passed_over: regular expressions for tensors that are left alone.
    """

    library: str
    name: str
    stem: str
    rename: weights.Rename | None = None
    stored_rename: weights.Rename | None = None
    passed_over: tuple[str, ...] = weights.BUFFERS


KINDS = {
    name: Kind(
        *CLASSES[name],
        STEMS[name],
        RENAMES[name],
        STORED_RENAMES.get(name),
        PASSED_OVER.get(name, weights.BUFFERS),
    )
    for name in NETWORKS_XL
}


def part_class(index: Mapping[str, Any], name: str) -> str | None:
    """Returns the class that model_index.json states for a part, or None where it states none."""
    entry = index.get(name)
    return entry[-1] if isinstance(entry, list) and entry else None


def check_part(
    path: epath.Path,
    name: str,
    config: Mapping[str, Any],
    index: Mapping[str, Any],
    classes: Sequence[str],
) -> None:
    """Refuses a part of a folder that is of another class than those that are known.

    Args:
      path: the folder.
      name: the part's name.
      config: the contents of its config.json.
      index: those of model_index.json.
      classes: the classes that it may be of, the one that is named first.

    Raises:
      UserError: it is of another class, by one of the two files.
    """
    file = path / name / "config.json"
    for source, kind in (
        (path / INDEX, part_class(index, name)),
        (file, config.get("_class_name")),
    ):
        if kind is not None and kind not in classes:
            raise UserError(
                f"{source}: the {name} is of class {kind}, which is not supported: use a model "
                f"whose {name} is of class {classes[0]}."
            )


def config_to_write(kind: Kind, config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Returns the config.json of a network, as PyTorch's libraries read it.

    Args:
      kind: the network's kind.
      config: the fields that it has.
      dtype: the dtype in which the network's weights are stored.
    """
    if kind.library == "diffusers":
        return {**config, "_class_name": kind.name, "_diffusers_version": diffusers.__version__}
    return {**with_dtype(config, dtype), "architectures": [kind.name]}


def with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Returns a transformers config that states the dtype in which the weights are stored.

    It is the dtype that `from_pretrained(torch_dtype="auto")` opens them in. Only newer versions
    know the field `dtype`, and prefer it where both are given, so that it is dropped.
    """
    others = {name: value for name, value in config.items() if name != "dtype"}
    return {**others, "torch_dtype": dtype}


def read_networks(
    path: epath.Path,
    templates: Mapping[str, Any],
    shardings: Mapping[str, Any] | None = None,
    kinds: Mapping[str, Kind] = KINDS,
) -> dict[str, Any]:
    """Reads the weights of a diffusers folder, one tensor after another.

    The headers of all files are checked before any tensor is read.

    Args:
      path: the folder, local or remote.
      templates: for each network, the tree of its parameters' shapes and dtypes.
      shardings: for each network, the tree of its parameters' shardings; None keeps all on the
        host.
      kinds: for each network, how it is stored.

    Returns:
      Each network's parameters, by its name.

    Raises:
      FileNotFoundError, UserError: see `tensor_files.open_networks` and `weights.match`.
    """
    stored = open_networks({path / name: kinds[name].stem for name in templates})
    for name in templates:
        if (rename := kinds[name].stored_rename) is not None:
            stored[name] = {rename(key): tensor for key, tensor in stored[name].items()}
    options = {
        name: {
            "template": template,
            "rename": kinds[name].rename,
            "ignore": kinds[name].passed_over,
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
      params: the denoiser's, "vae" and "text_encoder". Where there are several text encoders,
        "text_encoder" holds {"text_encoder", "text_encoder_2", ...}, so that whoever samples passes
        all that encodes text as one tree.

    Returns:
      One tree for each network.
    """
    text = params["text_encoder"]
    return {**params, **text} if "text_encoder" in text else dict(params)


def join_networks(trees: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model's parameters from its networks' own; the inverse of `split_networks`."""
    text = {name: tree for name, tree in trees.items() if name in TEXT_ENCODERS}
    if len(text) == 1:
        return dict(trees)
    others = {name: tree for name, tree in trees.items() if name not in text}
    return {**others, "text_encoder": text}


def same_configs(configs: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Returns whether two models' configs, by network, differ in nothing that is computed."""
    one, other = (
        {
            name: {field: value for field, value in values.items() if _matters(field)}
            for name, values in each.items()
        }
        for each in (configs, others)
    )
    return one == other


def _matters(field: str) -> bool:
    """Returns whether a field of a diffusers or transformers config says what is computed."""
    return not field.startswith("_") and field not in (
        "architectures",
        "dtype",
        "torch_dtype",
        "transformers_version",
    )
