"""Copies what a pipeline's folder has beside its networks: a safety checker, and its input.

They are neither trained nor run here. They are taken along so that an export is as whole as its
base.
"""

from absl import logging
from etils import epath

from diffusionrl_jax.data.files import read_json
from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.folders.networks import with_dtype
from diffusionrl_jax.models.folders.tensor_files import open_networks, write_json

COMPANIONS = ("safety_checker", "feature_extractor")
STEM = "model"


def copy_companions(base: epath.Path, path: epath.Path, dtype: str) -> dict[str, object]:
    """Copies the companions that a folder has, and warns of one whose files it lacks.

    Args:
      base: a folder in diffusers' layout.
      path: the folder that is written.
      dtype: the dtype in which weights are stored; see `weights.write_safetensors`.

    Returns:
      The fields of model_index.json that speak of what was copied.

    Raises:
      FileNotFoundError, UserError: a file is damaged or a shard is missing; see
        `tensor_files.open_networks`.
    """
    index = base / "model_index.json"
    pipeline = read_json(index) if index.exists() else {}
    # A pipeline without one states [null, null].
    named = [name for name in COMPANIONS if any(pipeline.get(name) or ())]
    copied = {name: pipeline[name] for name in named if _copy(base / name, path / name, dtype)}
    if "safety_checker" in copied:
        copied["requires_safety_checker"] = pipeline.get("requires_safety_checker", True)
    return copied


def _copy(source: epath.Path, target: epath.Path, dtype: str) -> bool:
    """Copies a folder of JSON files and perhaps weights, and returns whether it was whole."""
    files = {file.name: file for file in source.iterdir()} if source.exists() else {}
    is_network = "config.json" in files
    if not files or (is_network and not any(name.endswith(".safetensors") for name in files)):
        missing = "safetensors weights" if files else "files"
        logging.warning(
            "Left out: the pipeline names a %s, but there are no %s in %s. Put them there, and "
            "export again, if it is needed.",
            source.name,
            missing,
            source,
        )
        return False
    for name, file in files.items():
        if name.endswith(".json") and ".index." not in name:
            fields = read_json(file)
            if name == "config.json":
                fields = with_dtype(fields, dtype)
            write_json(target / name, fields)
    if is_network:
        tensors = open_networks({source: STEM})[source.name]
        weights.write_safetensors(target / f"{STEM}.safetensors", tensors, dtype)
    return True
