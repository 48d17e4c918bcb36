"""Writes what a run has trained for PyTorch's diffusers: as a whole folder, or as a LoRA file."""

from absl import logging
from etils import epath

from diffusionrl_jax import assets, runs
from diffusionrl_jax.checkpoints import make_writable
from diffusionrl_jax.experiment import load_policy
from diffusionrl_jax.learning.adaptation import make_lora
from diffusionrl_jax.models import hub, lora, weights
from diffusionrl_jax.models.stable_diffusion import save_stable_diffusion


def prepare_output(path: str, overwrite: bool = False) -> epath.Path:
    """Makes the folder and tries it, before anything is loaded.

    Raises:
      ValueError: it cannot be written to, or holds something and is not to be overwritten.
    """
    folder = epath.Path(path)
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ValueError(
            f"--output={path} is not empty: choose another folder, or write over its files "
            "with --overwrite."
        )
    return make_writable(path, "--output")


def export_pipeline(checkpoint: str, output: epath.Path, dtype: str) -> None:
    """Writes a complete folder in diffusers' layout.

    Args:
      checkpoint: a run's workdir (PATH, PATH@step or PATH@best), a diffusers folder, asset:... , or
        a Hugging Face hub id. What the pipeline has beside the networks is copied from the folder
        that it, or the run, started from.
      output: an existing folder.
      dtype: what the weights are stored as.

    Raises:
      ValueError, FileNotFoundError: there is no such checkpoint, or a weight is beyond float16.
    """
    path, step = runs.split_step(checkpoint)
    config = runs.opening_config(path)
    policy = runs.load_trained(path, config, step)
    base = hub.locate(assets.resolve(config.model))
    save_stable_diffusion(output, policy.model, policy.params, dtype, base)


def export_lora(checkpoint: str, output: epath.Path, dtype: str) -> None:
    """Writes the LoRA factors of a run, as `export_pipeline`.

    Raises:
      ValueError, FileNotFoundError: as `export_pipeline`, or the run has trained no LoRA.
    """
    path, step = runs.split_step(checkpoint)
    if not runs.is_run(path):
        raise ValueError(f"{path} is not the workdir of a run: leave out --lora.")
    config = runs.opening_config(path)
    adaptation = make_lora(config)
    if adaptation is None:
        raise ValueError(f"{path} has trained all of the UNet (config.lora.rank=0), not LoRA.")
    factors = runs.load_params(path, load_policy(config), step or "last")
    weights.write_safetensors(output / lora.FILE_NAME, adaptation.to_pytorch(factors), dtype)
    logging.info("The factors belong to %s.", config.model)
