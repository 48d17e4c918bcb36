"""LoRA files of a denoiser: as PyTorch's diffusers writes them with `save_lora_weights`, or as
kohya's trainer does.
"""

import json
import math
import os
import re
import shlex
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from etils import epath

from diffusionrl_jax.data import hub_files, stored_tensors
from diffusionrl_jax.data.files import resolve, split_step
from diffusionrl_jax.data.hub_files import Need
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders import hub, weights
from diffusionrl_jax.models.lora import DOWN, FILE_NAME, KERNEL, UP, Lora
from diffusionrl_jax.models.parameters import Parameters, flatten
from diffusionrl_jax.models.stacks import layer_paths, layer_shape

# What diffusers since 0.35 keeps beside the tensors: a JSON of LoRA's fields, by network.
METADATA = "lora_adapter_metadata"
FACTOR = re.compile(rf"(.+)\.({DOWN}|{UP})\.weight")
# kohya's names have underscores in place of dots.
KOHYA = re.compile(r"lora_unet_([^.]+)\.(lora_down\.weight|lora_up\.weight|alpha)")
KOHYA_KINDS = {"lora_down.weight": DOWN, "lora_up.weight": UP}


def describe(repository: str) -> Need:
    """Describes which file is read of a LoRA on the Hugging Face hub.

    It is that of the usual name, or else the only safetensors file that there is.
    """

    def choose(listed: Collection[str], read) -> list[str]:
        del read
        files = [name for name in sorted(listed) if re.fullmatch(r"[^/]+\.safetensors", name)]
        if FILE_NAME in files:
            return [FILE_NAME]
        if len(files) != 1:
            raise FileNotFoundError(
                f"{repository} on the Hugging Face hub has no {FILE_NAME}, and "
                f"{', '.join(files) or 'no file'} of safetensors: download one by `hf download "
                f"{repository} FILE --local-dir FOLDER`, and name FOLDER/FILE."
            )
        return files

    return Need(repository, choose)


def locate(text: str, name: str) -> epath.Path:
    """Returns the LoRA file that a config names, and downloads it where it is not here.

    Args:
      text: the safetensors file, or the folder that has it under the usual name, local, `gs://` or
        `asset:...`; or an id on the Hugging Face hub.
      name: what named it, for messages.

    Raises:
      FileNotFoundError: there is no such file, or the download failed.
      UserError: nothing can be there, as `files.as_path` says; or there is a run, whose checkpoints
        are no LoRA files.
    """
    if hub.is_hub_id(text, name):
        (held,) = hub_files.fetch([describe(text)])
        return epath.Path(os.fspath(held.folder / held.files[0]))
    if hub.is_run(split_step(text)[0]):
        raise UserError(
            f"{name}={text} names a checkpoint of a run, which is no LoRA file by itself: export "
            f"it by python -m diffusionrl_jax.export --checkpoint={shlex.quote(text)} --lora "
            "--output=DIR, and give DIR."
        )
    path = resolve(text, name)
    if path.is_dir():
        path /= FILE_NAME
    if not path.exists():
        raise FileNotFoundError(
            f"{name}={text!r}: there is no {path}; name a LoRA file, or a folder with "
            f"{FILE_NAME}, as `export --lora` and diffusers' save_lora_weights write it."
        )
    return path


def read_lora(
    text: str, name: str, denoiser: str, base: Parameters, one_rank: bool = False
) -> tuple[Lora, Parameters]:
    """Reads the factors of a LoRA file, whose merging is that of PyTorch's `fuse_lora`.

    Args:
      text, name: what names the file; see `locate`.
      denoiser: the denoiser's name in the pipeline, with which the file's names begin.
      base: the denoiser's parameters; only names and shapes are used.
      one_rank: whether a file is refused whose modules have several ranks, or that leaves out some
        layers of a stack, as what is trained further may not.

    Returns:
      Which kernels have factors, and the factors, float32 host arrays as of `Lora.init`. Where all
      modules have one scale, it is kept, as alpha; else each module's lies in its second factor,
      and where they have several ranks, zeros fill each up to the largest. Layers of a stack that
      the file leaves out have factors of zeros.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: the file is damaged, changes other networks, does not fit the denoiser, or has
        several ranks or some layers of a stack.
    """
    path = locate(text, name)
    tensors, metadata = stored_tensors.read_header(path)
    tensors, alpha = _by_module(tensors, denoiser, base, path)
    # PyTorch takes a rank from a second factor.
    ranks = {module: up.shape[1] for (module, kind), up in tensors.items() if kind == UP}
    modules = {module for module, _ in tensors}
    if lacking := sorted(module for module in modules if (module, UP) not in tensors):
        raise UserError(f"{path}: {lacking[0]} lacks its second factor ({UP}).")
    if not ranks:
        raise UserError(f"{path} has no factors: name another LoRA file.")
    rank = max(ranks.values())
    if one_rank and set(ranks.values()) != {rank}:
        raise UserError(
            f"{path}: its modules have the ranks {sorted(set(ranks.values()))}, of which one is "
            "trained: set config.lora.rank=0, to merge it."
        )
    scales = _scales(metadata, denoiser, ranks, alpha, path)
    only = next(iter(scales.values()))
    alpha = only * rank if set(scales.values()) == {only} else rank
    left_out = _left_out(ranks, base)
    if one_rank and left_out:
        raise UserError(
            f"{path} leaves out {next(iter(left_out))}, and blocks that are alike are trained "
            "together: set config.lora.rank=0, to merge it."
        )
    lora = Lora(rank, alpha, tuple(sorted({*ranks, *left_out})))
    state = {}
    for module, (*window, inputs, outputs) in left_out.items():
        ones = [1] * len(window)
        state[f"{denoiser}.{module}.{DOWN}.weight"] = np.zeros((rank, inputs, *window), np.float32)
        state[f"{denoiser}.{module}.{UP}.weight"] = np.zeros((outputs, rank, *ones), np.float32)
    for (module, kind), tensor in tensors.items():
        array = np.asarray(tensor, np.float32)
        missing, axis = rank - ranks[module], 0 if kind == DOWN else 1
        if missing:
            array = np.pad(array, [(0, missing * (n == axis)) for n in range(array.ndim)])
        # `to_flax` takes scales that lie in the second factors.
        scale = scales[module] if kind == UP else 1
        state[f"{denoiser}.{module}.{kind}.weight"] = np.float32(scale) * array
    return lora, lora.to_flax(state, base, denoiser, source=str(path))


def _left_out(named: Collection[str], base: Parameters) -> dict[str, tuple[int, ...]]:
    """Returns the modules of a stack of which a file names others, with their kernels' shapes."""
    found = {}
    for path, kernel in flatten(base).items():
        layers = [weights.pytorch_name(layer) for layer in layer_paths(path)]
        layers = [layer.removesuffix(".weight") for layer in layers]
        if path[-1] == KERNEL and not set(named).isdisjoint(layers):
            shape = layer_shape(path, kernel.shape)
            found |= dict.fromkeys([layer for layer in layers if layer not in named], shape)
    return found


def _by_module(
    tensors: Mapping[str, Any], denoiser: str, base: Parameters, path: epath.Path
) -> tuple[dict[tuple[str, str], Any], float | None]:
    """Returns a file's factors by their module and `DOWN` or `UP`, in its order, and kohya's alpha.

    Raises:
      UserError: a tensor is no factor of the denoiser, or there are several alphas of kohya's, of
        which diffusers gives attention another one than the trainer did.
    """
    factors, alphas = {}, set()
    if all(KOHYA.fullmatch(key) for key in tensors):
        paths = (place for place in flatten(base) if place[-1] == KERNEL)
        modules = [weights.pytorch_name(place).removesuffix(".weight") for place in paths]
        known = {module.replace(".", "_"): module for module in modules}
    else:
        known = {}
    for key, tensor in tensors.items():
        found, is_matrix = KOHYA.fullmatch(key), len(tensor.shape) >= 2
        if found and found[1] in known and found[2] in KOHYA_KINDS and is_matrix:
            factors[known[found[1]], KOHYA_KINDS[found[2]]] = tensor
            continue
        if found and found[1] in known and math.prod(tensor.shape) == 1:
            alphas.add(np.asarray(tensor, np.float32).item())
            continue
        found = FACTOR.fullmatch(key)
        if not found or not key.startswith(f"{denoiser}.") or not is_matrix:
            raise UserError(
                f"{path}: {key} is no factor of the {denoiser}, such as {denoiser}.(...).to_q."
                f"{DOWN}.weight: open the file in diffusers with load_lora_weights, drop what "
                "changes other networks, and write it with save_lora_weights."
            )
        factors[found[1].removeprefix(f"{denoiser}."), found[2]] = tensor
    if len(alphas) > 1:
        raise UserError(
            f"{path}: its modules have the alphas {sorted(alphas)}, by which diffusers merges it "
            "otherwise than its trainer: name a file of one alpha."
        )
    return factors, next(iter(alphas), None)


def _scales(
    metadata: Mapping[str, str],
    denoiser: str,
    ranks: Mapping[str, int],
    alpha: float | None,
    path: epath.Path,
) -> dict[str, float]:
    """Returns the number that each module's change is multiplied by, as diffusers and PEFT do.

    Args:
      metadata: the file's metadata. Its fields for the denoiser are those of PEFT's LoraConfig,
        whose patterns are regular expressions of the ends of names.
      denoiser: the denoiser's name.
      ranks: the rank of each module, in the file's order.
      alpha: the one that lies beside the factors of kohya's, if any does.
      path: the file, for messages.
    """
    try:
        found = json.loads(metadata.get(METADATA, "{}"))
        fields = {key.removeprefix(f"{denoiser}."): value for key, value in found.items()}
        # Without any alpha, diffusers takes the first module's rank, for all.
        default = next(iter(ranks.values())) if alpha is None else alpha
        common = float(fields.get("lora_alpha", default))
        patterns = {key: float(value) for key, value in (fields.get("alpha_pattern") or {}).items()}
        patterns = {re.compile(rf"(.*\.)?({key})$"): value for key, value in patterns.items()}
        has_root = bool(fields.get("use_rslora"))
    except (ValueError, AttributeError, TypeError, re.error) as error:
        raise UserError(f"{path}: its {METADATA} are damaged ({error}).") from None

    def scale(module: str, rank: int) -> float:
        own = (value for pattern, value in patterns.items() if pattern.match(module))
        return next(own, common) / (math.sqrt(rank) if has_root else rank)

    scales = {module: scale(module, rank) for module, rank in ranks.items()}
    for module, value in scales.items():
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{path}: the alpha of {module} is not above 0: its scale is {value}.")
    return scales
