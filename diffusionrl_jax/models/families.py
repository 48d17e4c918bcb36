"""Opens and writes text-to-image models of any family: the table `FAMILIES`."""

from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epath

from diffusionrl_jax.data.files import read_json, resolve
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.description import Description
from diffusionrl_jax.models.folders import hub, published
from diffusionrl_jax.models.folders.networks import INDEX
from diffusionrl_jax.models.mmdit import published as published_transformers
from diffusionrl_jax.models.mmdit.description import describe_mmdit
from diffusionrl_jax.models.mmdit.folder import load_mmdit, save_mmdit
from diffusionrl_jax.models.mmdit.model import MMDiT
from diffusionrl_jax.models.mmdit.shapes import mmdit_shapes
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.stable_diffusion.description import describe
from diffusionrl_jax.models.stable_diffusion.folder import (
    load_stable_diffusion,
    save_stable_diffusion,
)
from diffusionrl_jax.models.stable_diffusion.model import StableDiffusion
from diffusionrl_jax.models.stable_diffusion.shapes import stable_diffusion_shapes
from diffusionrl_jax.models.text_to_image import TextToImage


class Family(NamedTuple):
    """How the folders of one kind of model are opened and written.

    Attributes:
      describe: takes what `config.model` names and the pictures' (height, width), or None for the
        model's own, and options, and returns the model's sizes, without opening its weights.
      denoiser: the name of the denoiser's folder.
      shapes: takes what `config.model` names, a folder that is here or a published model, and
        options, and returns the model and its parameters' shapes, as
        `stable_diffusion.shapes.stable_diffusion_shapes` does.
      read: reads a folder, as `stable_diffusion.folder.load_stable_diffusion` does.
      write: writes a folder, as `stable_diffusion.folder.save_stable_diffusion` does.
      guidance_scale: the scale of classifier-free guidance that its pipeline samples with.
      options: the names of `load_model`'s options that only some families know.
    """

    describe: Callable[..., Description]
    denoiser: str
    shapes: Callable[..., tuple[TextToImage, dict[str, Any]]]
    read: Callable[..., tuple[TextToImage, dict[str, Any]]]
    write: Callable[..., None]
    guidance_scale: float = 7.5
    options: tuple[str, ...] = ()


STABLE_DIFFUSION = Family(
    describe,
    StableDiffusion.denoiser_name,
    stable_diffusion_shapes,
    load_stable_diffusion,
    save_stable_diffusion,
)
MMDIT = Family(
    describe_mmdit,
    MMDiT.denoiser_name,
    mmdit_shapes,
    load_mmdit,
    save_mmdit,
    options=("text_tokens",),
)
# The families, by the class of the pipeline in a folder's model_index.json.
FAMILIES = {
    "StableDiffusionPipeline": STABLE_DIFFUSION,
    "StableDiffusionXLPipeline": STABLE_DIFFUSION._replace(guidance_scale=5.0),
    "StableDiffusion3Pipeline": MMDIT._replace(guidance_scale=7.0),
    # It takes the scale of its guidance as an input, and is not guided otherwise.
    "FluxPipeline": MMDIT._replace(
        guidance_scale=1.0, options=("text_tokens", "embedded_guidance")
    ),
}
# The family of each published model whose sizes are known without it, by what may name it.
PUBLISHED = {
    **dict.fromkeys((*published.HUB_IDS, *published.HUB_IDS.values()), STABLE_DIFFUSION),
    **{
        name: FAMILIES[configs["pipeline"]["_class_name"]]
        for name, configs in published_transformers.CONFIGS.items()
    },
}
DENOISERS = sorted({family.denoiser for family in FAMILIES.values()})


def family_of(folder: epath.Path) -> Family:
    """Returns the family of a folder, by the pipeline's class in its model_index.json.

    It is Stable Diffusion's where the folder has no such file.

    Raises:
      UserError: no family is known for the folder's pipeline, or the folder does not name it.
    """
    index = folder / INDEX
    if not index.exists() and (folder / MMDIT.denoiser).exists():
        raise UserError(
            f"{index} does not exist, which says what the folder's {MMDIT.denoiser} is for: copy "
            "it from where the folder is from."
        )
    name = read_json(index).get("_class_name") if index.exists() else "StableDiffusionPipeline"
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(
            f"{index}: the pipeline is of class {name}, which is not supported: use one of "
            f"{', '.join(FAMILIES)}."
        )
    return FAMILIES[name]


def describe_model(
    name: str, size: tuple[int, int] | None = None, text_tokens: int | None = None
) -> Description:
    """Returns the sizes of a model that is here, or of a published one.

    Args:
      name: what `config.model` names; see the family's `describe`.
      size: the height and width of the pictures in pixels; None means the denoiser's own size.
      text_tokens: as in `load_model`.

    Raises:
      UserError: the model's family has no T5 that reads so many tokens.
      UserError, FileNotFoundError: as the family's `describe`.
    """
    family = family_at(name)
    return family.describe(name, size, **_own_options(family, name, text_tokens))


def family_at(name: str) -> Family:
    """Returns the family of a model, which is fetched where it is on the hub.

    It is Stable Diffusion's where nothing is named, and known for a published model that is not in
    a folder here.

    Args:
      name: what `config.model` names, which may be empty.

    Raises:
      UserError, FileNotFoundError: as `hub.locate` and `family_of`.
    """
    if not name:
        return STABLE_DIFFUSION
    if name in PUBLISHED and not resolve(name, "config.model").exists():
        return PUBLISHED[name]
    return family_of(hub.locate(name))


def model_shapes(
    name: str,
    *,
    text_tokens: int | None = None,
    embedded_guidance: float | None = None,
    **options,
) -> tuple[TextToImage, dict[str, Any]]:
    """Builds a model of any family without its weights.

    Args:
      name: a folder that is here, or a published model's hub id or short name.
      text_tokens, embedded_guidance: as in `load_model`.
      **options: those of `stable_diffusion.build.build_stable_diffusion`.

    Returns:
      The model, and the shapes of its parameters.

    Raises:
      UserError: the name is neither here nor known, or the family does not know an option.
      UserError, FileNotFoundError: as the family's `shapes`.
    """
    if name not in PUBLISHED and not (name and resolve(name, "config.model").exists()):
        raise UserError(
            f"config.model={name!r} is no folder here, and its sizes are not known: give a "
            f"diffusers folder, or one of {list(PUBLISHED)}."
        )
    family = family_at(name)
    own = _own_options(family, name, text_tokens, embedded_guidance)
    return family.shapes(name, **own, **options)


def load_model(
    path: str,
    *,
    text_tokens: int | None = None,
    embedded_guidance: float | None = None,
    **options,
) -> tuple[TextToImage, dict[str, Any]]:
    """Opens a folder of any family.

    Args:
      path: a folder in diffusers' layout, local or `gs://`, or a hub id.
      text_tokens: how many tokens T5 reads, for models that have it; None means the model's own.
      embedded_guidance: the scale of guidance that is an input of FLUX's transformer; None means
        the usual one.
      **options: the options of `stable_diffusion.folder.load_stable_diffusion`.

    Returns:
      The model, and its parameters.

    Raises:
      UserError: the model's family does not know an option.
      UserError, FileNotFoundError: as the family's `read`.
    """
    folder = hub.locate(path)
    family = family_of(folder)
    own = _own_options(family, path, text_tokens, embedded_guidance)
    return family.read(folder, **own, **options)


def _own_options(
    family: Family,
    path: str,
    text_tokens: int | None = None,
    embedded_guidance: float | None = None,
) -> dict[str, Any]:
    """Returns which of the options that only some families know are set.

    Raises:
      UserError: the family does not know one of them.
    """
    own = {"text_tokens": text_tokens, "embedded_guidance": embedded_guidance}
    own = {name: value for name, value in own.items() if value is not None}
    for name, value in own.items():
        if name not in family.options:
            knows = [kind for kind, other in FAMILIES.items() if name in other.options]
            raise UserError(
                f"config.sampler.{name}={value} is for models of {' and '.join(knows)}, and {path} "
                "is another: set it to 0."
            )
    return own


def save_model(path: epath.Path, model: TextToImage, params: Parameters, *options) -> None:
    """Writes a folder that PyTorch's diffusers opens.

    Args:
      path: the folder.
      model, params: the model, and the parameters that are written.
      *options: the further arguments of `stable_diffusion.folder.save_stable_diffusion`.
    """
    FAMILIES[model.pipeline_name].write(path, model, params, *options)
