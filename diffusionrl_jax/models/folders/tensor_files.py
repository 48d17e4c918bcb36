"""The safetensors files of a checkpoint: of one network or several, in one piece or in shards."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from diffusionrl_jax.data import stored_tensors
from diffusionrl_jax.data.files import in_bucket, read_json
from diffusionrl_jax.data.stored_tensors import StoredTensor
from diffusionrl_jax.mistakes import UserError

PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
# In this order: of a full and a half precision file, the full one is meant.
VARIANTS = ("", ".fp16")
DIFFUSERS_STEM = "diffusion_pytorch_model"

CONVERSION = (
    'python -c "import sys, torch; from safetensors.torch import save_file; '
    "*sources, target = sys.argv[1:]; "
    "save_file({k: v.contiguous().clone() for s in sources for k, v in "
    "torch.load(s, map_location='cpu', weights_only=True).items()}, target, "
    "metadata={'format': 'pt'})\""
)


def read_header(path) -> dict[str, StoredTensor]:
    """As `stored_tensors.read_header`, without the metadata.

    Raises:
      FileNotFoundError: there is no such file; where there is a pickled one, says how to convert
        it.
      UserError: the file is truncated or corrupt, or holds a dtype that is not supported.
    """
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(_missing([path]))
    return stored_tensors.read_header(path)[0]


def open_networks(folders: Mapping[epath.Path, str]) -> dict[str, dict[str, StoredTensor]]:
    """The tensors of several networks' folders, whichever way they are stored.

    Args:
      folders: of each network, local or remote, with its weights' file without the suffix ("model",
        "diffusion_pytorch_model"). Read is the first there is of `candidates`.

    Returns:
      Name of the folder -> PyTorch name -> where the tensor lies.

    Raises:
      FileNotFoundError: there are no such files, or a shard is missing; where there are pickled
        ones, says how to convert them.
      UserError: a file is truncated or corrupt, or a shard lacks what the index says it has.
    """
    opened = {
        folder.name: tensors
        for folder, stem in folders.items()
        if (tensors := _open_network(folder, stem)) is not None
    }
    missing = [
        folder / f"{stem}.safetensors"
        for folder, stem in folders.items()
        if folder.name not in opened
    ]
    if missing:
        raise FileNotFoundError(_missing(missing))
    return opened


def candidates(stem: str) -> list[str]:
    """The files that a network may be stored as, the preferred one first.

    Full precision is before half. Of a network in shards that lies in one file as well, diffusers
    reads the shards, by their index, and transformers the file.

    Args:
      stem: the weights' file without the suffix.
    """
    files = []
    for variant in VARIANTS:
        single = f"{stem}{variant}.safetensors"
        index = f"{stem}.safetensors.index{variant}.json"
        files += [index, single] if stem == DIFFUSERS_STEM else [single, index]
    return files


def _open_network(folder: epath.Path, stem: str) -> dict[str, StoredTensor] | None:
    for name in candidates(stem):
        file = folder / name
        if file.exists():
            return read_header(file) if file.suffix == ".safetensors" else _open_shards(file)
    return None


def _open_shards(index: epath.Path) -> dict[str, StoredTensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name)
        for name in places.values()
    ):
        raise UserError(f"{index} has no weight_map to safetensors files beside it; copy it again.")
    shards = {name: read_header(index.parent / name) for name in sorted(set(places.values()))}
    for name, shard in places.items():
        if name not in shards[shard]:
            raise UserError(
                f"{index.parent / shard} lacks {name!r}, which {index.name} says it has."
            )
    tensors = {}
    for shard, stored in shards.items():
        for name in stored:
            if places.get(name, shard) != shard or name in tensors:
                raise UserError(
                    f"Tensor {name!r} lies in {index.parent / shard} too, where {index.name} does "
                    "not place it: the shards do not belong together, download them again."
                )
        tensors |= stored
    return tensors


def write_json(path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object, for people to read; its folder is made."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def some(names: Iterable[str], limit: int = 4) -> str:
    """The first few names, quoted, and how many more there are."""
    names = sorted(names)
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _missing(files: Sequence[epath.Path]) -> str:
    """What to do about weights' files that do not exist."""
    pickled = {file: _pickled(file) for file in files}
    commands = [
        " ".join([CONVERSION, *(shlex.quote(str(name)) for name in [*sources, file])])
        for file, sources in pickled.items()
        if sources
    ]
    if commands:
        found = some(str(source) for sources in pickled.values() for source in sources)
        refused = (
            f"{files[0]} does not exist, only {found}. Pickled weights can run any code and are "
            "not read. "
        )
        if in_bucket(files[0]):  # PyTorch opens files of this machine.
            return (
                f"{refused}Copy the model's folder from the bucket to a disk (`gcloud storage cp "
                "-r`) and give the copy: the error then says how to convert them."
            )
        return f"{refused}Convert them, where torch is installed, with:\n" + " && ".join(commands)
    if not files[0].parent.exists():
        return f"{files[0]} does not exist: there is no folder {files[0].parent}."
    others = [entry.name for entry in files[0].parent.iterdir() if entry.suffix == ".safetensors"]
    if others:
        return (
            f"{files[0]} does not exist, and {some(others)} beside it are not read: rename the "
            "weights that are meant."
        )
    return f"{files[0]} does not exist; the folder is incomplete: copy or download it again."


def _pickled(file: epath.Path) -> list[epath.Path]:
    """The pickled files with the same weights: one, or all shards of one precision."""
    if not file.parent.exists():
        return []
    found = sorted(path for path in file.parent.iterdir() if path.suffix in PICKLED_SUFFIXES)
    # transformers calls its pickles pytorch_model; other variants hold the same weights again, and
    # are named before or, by older versions, after the shard's number.
    pattern = rf"({file.stem}|pytorch_model)(\.\w+)?(-\d+-of-\d+)?(\.\w+)?"
    variants: dict[tuple[str, bool, str], list[epath.Path]] = {}
    for path in found:
        if named := re.fullmatch(pattern, path.stem):
            stem, before, shard, after = (part or "" for part in named.groups())
            variants.setdefault((before + after, bool(shard), stem), []).append(path)
    return variants[min(variants)] if variants else found[:1]
