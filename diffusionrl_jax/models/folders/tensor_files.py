"""Reads the safetensors files of a checkpoint: of one network or several, whole or in shards."""

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
# The order counts: where there are files of full and of half precision, the full one is read.
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
    """Reads where each tensor of a safetensors file lies; see `stored_tensors.read_header`.

    Returns:
      Where the tensor lies in the file, for each PyTorch name.

    Raises:
      FileNotFoundError: there is no such file; where there is a pickled one, it says how to convert
        it.
      UserError: the file is truncated or corrupt, or holds a dtype that is not supported.
    """
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(_missing([path]))
    return stored_tensors.read_header(path)[0]


def open_networks(folders: Mapping[epath.Path, str]) -> dict[str, dict[str, StoredTensor]]:
    """Reads where the tensors of several networks lie, whichever way they are stored.

    Args:
      folders: the folder of each network, local or remote, with the name of its weights' file
        without the suffix ("model", "diffusion_pytorch_model"). The first of `candidates` that
        exists is read.

    Returns:
      For each folder's name, where the tensor of each PyTorch name lies.

    Raises:
      FileNotFoundError: there are no such files, or a shard is missing; where there are pickled
        ones, it says how to convert them.
      UserError: a file is truncated or corrupt, or the shards are not those of their index.
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
    """Returns the names of the files that a network may be stored as, the preferred one first.

    Full precision comes before half precision. Where a network lies in shards and in one file as
    well, diffusers reads the shards, by their index, and transformers reads the file.

    Args:
      stem: the name of the weights' file without the suffix.
    """
    files = []
    for variant in VARIANTS:
        single = f"{stem}{variant}.safetensors"
        index = f"{stem}.safetensors.index{variant}.json"
        files += [index, single] if stem == DIFFUSERS_STEM else [single, index]
    return files


def _open_network(folder: epath.Path, stem: str) -> dict[str, StoredTensor] | None:
    """Returns where a network's tensors lie, or None where its folder has none of the files."""
    for name in candidates(stem):
        file = folder / name
        if file.exists():
            return read_header(file) if file.suffix == ".safetensors" else _open_shards(file)
    return None


def _open_shards(index: epath.Path) -> dict[str, StoredTensor]:
    """Returns where the tensors of all shards that an index names lie."""
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
    """Writes a JSON object, laid out for people to read, and makes the folder that it lies in."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def some(names: Iterable[str], limit: int = 4) -> str:
    """Returns the first few names, quoted, and how many more there are."""
    names = sorted(names)
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _missing(files: Sequence[epath.Path]) -> str:
    """Returns a message that says what to do about weights' files that do not exist."""
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
    """Returns the pickled files that hold the same weights: one, or all shards of one precision."""
    if not file.parent.exists():
        return []
    found = sorted(path for path in file.parent.iterdir() if path.suffix in PICKLED_SUFFIXES)
    # transformers calls its pickles pytorch_model. Other variants hold the same weights again, and
    # are named before or, by older versions, after the shard's number.
    pattern = rf"({file.stem}|pytorch_model)(\.\w+)?(-\d+-of-\d+)?(\.\w+)?"
    variants: dict[tuple[str, bool, str], list[epath.Path]] = {}
    for path in found:
        if named := re.fullmatch(pattern, path.stem):
            stem, before, shard, after = (part or "" for part in named.groups())
            variants.setdefault((before + after, bool(shard), stem), []).append(path)
    return variants[min(variants)] if variants else found[:1]
