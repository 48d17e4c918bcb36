"""Turns a published reward model's pickle into the folder that training loads.

PyTorch is needed here and nowhere else. It reads tensors only (`weights_only=True`), so that the
file cannot run code. The folder is then opened as training opens it, which checks every tensor.
"""

import json
from collections.abc import Mapping

import numpy as np
from absl import logging
from etils import epath

from diffusionrl_jax.data.files import (
    as_path,
    clear_full_disk,
    partial_path,
    prepare_file,
    read_json,
)
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.rewards import REWARDS, checkpoint, hps_v2

# The config.json of each model at its published size; aesthetic takes CLIP's own.
CONFIGS = {"hps_v2": hps_v2.PUBLISHED, "image_reward": {}, "aesthetic": {}}
INSTALL_TORCH = (
    "install the extra `torch` of this package, or `pip install torch` (its CPU build is enough)"
)
TOKENIZERS = {
    "image_reward": checkpoint.BERT_TOKENIZER_FILES,
    **dict.fromkeys(
        (
            "hps_v2",
            "pick_score",
            "clip_score",
            "detection",
            "requested_objects",
            "statistical_parity",
        ),
        checkpoint.CLIP_TOKENIZER_FILES,
    ),
}


def read_pickle(source: epath.Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a PyTorch pickle, or of its entry `state_dict`.

    Returns:
      Name -> array. bfloat16, which NumPy lacks, becomes float32.

    Raises:
      UserError: PyTorch is not installed, or the file holds anything but named tensors.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(f"PyTorch is needed to read {source}, once: {INSTALL_TORCH}.") from error
    try:
        with source.open("rb") as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # There are many kinds, pickle's own among them.
        raise UserError(
            f"{source} can't be read as a file of tensors alone ({type(error).__name__}). Download "
            "it again; a pickle that holds anything else could run code and is refused."
        ) from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not all(map(torch.is_tensor, state.values())):
        raise UserError(f"{source} holds no named tensors: it is the file of something else.")
    # NumPy has no bfloat16.
    known = lambda tensor: tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return {name: known(tensor).detach().numpy() for name, tensor in state.items()}


def read_tokenizer(reward: str, folder: str) -> dict[str, bytes]:
    """Reads the tokenizer's files of a reward.

    Args:
      reward: a name in `REWARDS`.
      folder: the folder with the files; it may be empty if the reward needs none.

    Returns:
      Name -> content.

    Raises:
      FileNotFoundError: files are missing; the error names them.
    """
    files = TOKENIZERS.get(reward, ())
    path = as_path(folder, "--tokenizer") if folder else None
    missing = [name for name in files if not (path and (path / name).exists())]
    if missing:
        raise FileNotFoundError(
            f"{reward} needs its tokenizer's {' and '.join(missing)}, which "
            f"--tokenizer={folder or '(not given)'} lacks: name a folder with them."
        )
    return {name: (path / name).read_bytes() for name in files}


def read_clip(folder: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Reads the image tower that the aesthetic head belongs on.

    Args:
      folder: the folder of a CLIP model.

    Returns:
      The tower's config and its tensors.

    Raises:
      FileNotFoundError, UserError: the folder has no such tower.
    """
    if not folder:
        raise UserError(
            "aesthetic is a head on CLIP: name openai/clip-vit-large-patch14's folder with --clip."
        )
    fields = ("vision_config", "projection_dim")
    path, config = checkpoint.read_config(folder, fields)
    tensors = weights.read_safetensors(path / checkpoint.WEIGHTS_FILE).items()
    seen = ("vision_model.", "visual_projection.")
    state = {name: tensor for name, tensor in tensors if name.startswith(seen)}
    return {name: config[name] for name in fields}, state


def convert(
    reward: str, source: str, output: str, tokenizer: str = "", clip: str = "", config: str = ""
) -> None:
    """Writes a reward model's folder. The arguments are the flags of `convert.py`.

    Args:
      reward: a name in `REWARDS`.
      source: the published file of tensors.
      output: the folder to write; it must not exist.
      tokenizer: a folder with the tokenizer's files.
      clip: for "aesthetic", the folder of the image tower.
      config: a config.json. If it is empty, rewards in `CONFIGS` take the published one.

    Raises:
      FileExistsError, FileNotFoundError, UserError: something is in the way, is missing, or does
        not fit. Nothing is left behind then.
    """
    if reward not in REWARDS or not (reward in CONFIGS or config):
        raise UserError(
            f"--reward={reward} must be one of {', '.join(CONFIGS)}; another one's needs --config."
        )
    published, target = as_path(source, "--source"), as_path(output, "--output")
    if target.exists():
        raise FileExistsError(f"--output={target} exists: name a folder that does not.")
    files = read_tokenizer(reward, tokenizer)
    own = as_path(config, "--config") if config else None
    fields = dict(read_json(own) if own else CONFIGS[reward])
    if not published.exists():
        raise FileNotFoundError(f"--source={published} does not exist.")
    # Writing is tried before minutes are spent on reading.
    target.parent.mkdir(parents=True, exist_ok=True)
    prepare_file(str(target), "--output")
    partial = partial_path(target)
    try:
        _write(reward, published, partial, files, fields, clip)
        partial.rename(target)
        logging.info("Wrote %s: every tensor fits %s.", target, reward)
    finally:
        partial.rmtree(missing_ok=True)


def _write(
    reward: str,
    source: epath.Path,
    folder: epath.Path,
    files: Mapping[str, bytes],
    fields: Mapping,
    clip: str,
) -> None:
    """Writes the folder, and opens it as training does."""
    state = read_pickle(source)
    if reward == "aesthetic":
        clip_fields, tower = read_clip(clip)
        fields, state = {**clip_fields, **fields}, tower | state
    kept = {value.dtype.name for value in state.values() if value.dtype.kind == "f"}
    dtype = "float16" if kept == {"float16"} else "float32"
    with clear_full_disk(folder.parent):
        weights.write_safetensors(folder / checkpoint.WEIGHTS_FILE, state, dtype)
        (folder / checkpoint.CONFIG_FILE).write_text(json.dumps(fields, indent=2) + "\n")
        for name, content in files.items():
            (folder / name).write_bytes(content)
    del state
    try:
        REWARDS[reward].load(str(folder))
    except ValueError as error:
        raise UserError(f"{source} does not fit {reward}: {error}") from error
