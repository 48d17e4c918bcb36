"""Says which weights a model has, by digests of its files or of its checkpoint's arrays."""

import contextlib
import hashlib
import json
from typing import Any

from diffusionrl_jax.data import hub_files
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.data.file_digests import file_digest, files_digest, folder_digest
from diffusionrl_jax.data.hub_files import Held
from diffusionrl_jax.models import lora_files
from diffusionrl_jax.models.folders import hub
from diffusionrl_jax.runs import trained
from diffusionrl_jax.runs.checkpoint_records import read_record


def settle_step(path: str, step: str) -> str:
    """Returns the number of the step that "best" or "last" means now.

    Args:
      path, step: as in `trained.load_trained`.

    Returns:
      The number, as text; "" for what is not the workdir of a run.

    Raises:
      UserError, FileNotFoundError: as `trained.check_trained`.
    """
    if not step and hub.is_hub_id(path, "config.model"):
        return ""  # What is on the hub is fetched with all else.
    trained.check_trained(path, step)
    if not hub.is_run(path):
        return ""
    if step.isdecimal():
        return str(int(step))
    config = trained.read_config(path)
    with contextlib.closing(trained.open_checkpoints(path, config)) as checkpoints:
        return str(checkpoints.best_step() if step == "best" else checkpoints.steps()[-1])


def held_digest(held: Held) -> str:
    """Returns the digest of what came from the hub, of those files that are read."""
    return files_digest({name: held.folder / name for name in held.files})


def identify_model(path: str, step: str, start: str = "") -> dict[str, Any]:
    """Describes a model, so that another one, or one that was changed, is known to be another.

    Args:
      path: the workdir of a run, a diffusers folder, asset:... , or a Hugging Face hub id.
      step: the number of a run's step, from `settle_step`.
      start: the LoRA file that is merged into the model; "" for none.

    Returns:
      What JSON can hold: the path, with a digest of its files (`folder_digest`, and of the hub's
      those that are read); or of a run the step, a digest of the checkpoint's arrays, LoRA's
      fields, and the model that it started from, which has the other networks.

    Raises:
      UserError, OSError: there is no such model, or its record is damaged.
    """
    if hub.is_run(path):
        config = trained.read_config(path)
        return {
            "path": path,
            "step": step,
            "arrays": _checkpoint_digest(path, config, int(step)),
            "lora": config.lora.to_dict() if config.lora.rank else {},
            "started_from": identify_model(config.model, ""),
        }
    if hub.is_hub_id(path, "config.model"):
        (held,) = hub_files.fetch([hub.describe(path)])
        files = held_digest(held)
    else:
        files = folder_digest(hub.locate(path))
    found: dict[str, Any] = {"path": path, "files": files}
    if start:
        lora = lora_files.locate(start, "config.lora.start")
        found["lora"] = {"path": start, "files": file_digest(lora)}
    return found


def _checkpoint_digest(path: str, config: Config, step: int) -> str:
    """Returns a digest of the digests of a checkpoint's arrays.

    Checkpoints of early versions have none: there it is that of the files.
    """
    with contextlib.closing(trained.open_checkpoints(path, config)) as checkpoints:
        record = read_record(checkpoints.directory, step)
        if record is None:
            return folder_digest(checkpoints.directory / str(step))
    text = json.dumps(record["digests"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
