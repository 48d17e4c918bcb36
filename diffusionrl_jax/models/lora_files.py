"""LoRA files of a denoiser, as PyTorch's diffusers writes them with `save_lora_weights`."""

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusionrl_jax.data import stored_tensors
from diffusionrl_jax.data.files import resolve
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.lora import DOWN, FILE_NAME, UP, Lora
from diffusionrl_jax.models.parameters import Parameters

# What diffusers since 0.35 keeps beside the tensors: a JSON of LoRA's fields, by network.
METADATA = "lora_adapter_metadata"
FACTOR = re.compile(rf"(.+)\.({DOWN}|{UP})\.weight")


def read_lora(text: str, name: str, denoiser: str, base: Parameters) -> tuple[Lora, Parameters]:
    """Reads the factors of a LoRA file.

    Args:
      text: the safetensors file, or the folder that has it under the usual name; local, `gs://` or
        `asset:...`.
      name: what named it, for messages.
      denoiser: the denoiser's name in the pipeline, with which the file's names begin.
      base: the denoiser's parameters; only shapes are used.

    Returns:
      Which kernels have factors, and the factors, float32 host arrays as of `Lora.init`. The file's
      own scale is kept, as alpha.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: the file is damaged, changes other networks, or does not fit the denoiser.
    """
    path = resolve(text, name)
    if path.is_dir():
        path /= FILE_NAME
    if not path.exists():
        raise FileNotFoundError(
            f"{name}={text!r}: there is no {path}; name a LoRA file, or a folder with "
            f"{FILE_NAME}, as `export --lora` and diffusers' save_lora_weights write it."
        )
    tensors, metadata = stored_tensors.read_header(path)
    ranks = {}
    for key, tensor in tensors.items():
        found = FACTOR.fullmatch(key)
        if not found or not key.startswith(f"{denoiser}."):
            raise UserError(
                f"{path}: {key} is no factor of the {denoiser}, such as {denoiser}.(...).to_q."
                f"{DOWN}.weight: open the file in diffusers with load_lora_weights, drop what "
                "changes other networks, and write it with save_lora_weights."
            )
        if found[2] == DOWN:
            ranks[found[1].removeprefix(f"{denoiser}.")] = tensor.shape[0]
    if len(set(ranks.values())) != 1:
        raise UserError(
            f"{path}: its modules have the ranks {sorted(set(ranks.values()))}: one is supported."
        )
    rank = next(iter(ranks.values()))
    lora = Lora(rank, _alpha(metadata, denoiser, rank, path), tuple(sorted(ranks)))
    # `to_flax` takes a scale that lies in the second factors.
    state = {
        key: np.float32(lora.scale if f".{UP}." in key else 1) * np.asarray(tensor, np.float32)
        for key, tensor in tensors.items()
    }
    return lora, lora.to_flax(state, base, denoiser, source=str(path))


def _alpha(metadata: Mapping[str, str], denoiser: str, rank: int, path: Any) -> float:
    """Returns the alpha that a file's metadata has for the denoiser, or else the rank."""
    try:
        fields = json.loads(metadata.get(METADATA, "{}"))
        alpha = float(fields.get(f"{denoiser}.lora_alpha", rank))
        patterns = [fields.get(f"{denoiser}.{name}_pattern") for name in ("rank", "alpha")]
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: its {METADATA} are damaged ({error}).") from None
    if any(patterns):
        raise UserError(f"{path}: its modules have several ranks or alphas: one is supported.")
    return alpha
