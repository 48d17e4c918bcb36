"""Writes what a run has trained for PyTorch's diffusers: as a whole folder, or as a LoRA file."""

import contextlib
from collections.abc import Iterator

from absl import logging
from etils import epath

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.data.files import (
    clear_full_disk,
    in_bucket,
    partial_path,
    prepare_folder,
    remove_partials,
)
from diffusionrl_jax.diffusion.pipeline import Policy
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.experiments import checks
from diffusionrl_jax.experiments.chain import make_chain
from diffusionrl_jax.learning.adaptation import make_lora
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models import lora
from diffusionrl_jax.models.families import PUBLISHED, model_shapes, save_model
from diffusionrl_jax.models.folders import hub, weights
from diffusionrl_jax.models.folders.tensor_files import candidates
from diffusionrl_jax.runs import trained

INDEX = "model_index.json"


def prepare_output(path: str, overwrite: bool = False) -> epath.Path:
    """Makes the output folder and tries to write to it, before anything is loaded.

    Args:
      path: the folder, as given by the flag --output.
      overwrite: whether the folder may hold something already.

    Raises:
      UserError: the folder cannot be written to, or holds something and may not be overwritten.
    """
    output = prepare_folder(path, "--output")
    remove_partials(output)  # A killed export may have left some.
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise UserError(
            f"--output={path} is not empty: choose another folder, or write over its files "
            "with --overwrite."
        )
    return output


@contextlib.contextmanager
def _whole_folder(output: epath.Path) -> Iterator[epath.Path]:
    """Yields a folder to write to, whose files are then moved to the output, model_index.json last.

    The output is thus not taken for a pipeline before it is one. Weights that are there and would
    be read in the place of the new ones are removed. In a bucket nothing can be moved, and the
    output itself is yielded; `save_model` writes model_index.json last there.
    """
    output = epath.Path(output)
    if in_bucket(output):
        yield output
        return
    partial = partial_path(output / INDEX)
    try:
        with clear_full_disk(output):
            partial.mkdir()
            yield partial
        if (partial / INDEX).exists():
            (output / INDEX).unlink(missing_ok=True)
        _remove_others(partial, output)
        _move(partial, output)
    finally:
        partial.rmtree(missing_ok=True)


def _remove_others(written: epath.Path, output: epath.Path) -> None:
    """Removes what the weights of a folder's networks are stored as beside what is written."""
    for folder in written.iterdir():
        for file in folder.glob("*.safetensors") if folder.is_dir() else ():
            for name in candidates(file.stem):
                if name != file.name:
                    (output / folder.name / name).unlink(missing_ok=True)


def _move(source: epath.Path, target: epath.Path) -> None:
    """Moves files into a folder, over what is there. Files in subfolders are moved first."""
    entries = sorted(source.iterdir(), key=lambda entry: not entry.is_dir())
    for entry in entries:
        if entry.is_dir():
            (target / entry.name).mkdir(exist_ok=True)
            _move(entry, target / entry.name)
        else:
            entry.replace(target / entry.name)


def export_pipeline(checkpoint: str, output: epath.Path, dtype: str) -> None:
    """Writes a complete folder in diffusers' layout.

    What a pipeline has beside the networks is copied from the folder that the checkpoint, or its
    run, started from.

    Args:
      checkpoint: a run's workdir (PATH, PATH@step, @best or @last), a diffusers folder, asset:... ,
        or a Hugging Face hub id.
      output: an existing folder.
      dtype: the dtype in which the weights are stored.

    Raises:
      UserError, FileNotFoundError: there is no such checkpoint, or a weight is too large for
        float16.
    """
    path, step = trained.parse_model(checkpoint, "--checkpoint")
    config = trained.opening_config(path)
    policy = trained.load_trained(path, config, step)
    base = hub.locate(config.model)
    with _whole_folder(output) as folder:
        save_model(folder, policy.model, policy.params, dtype, base)
        if in_bucket(output):
            _remove_others(folder, output)


def _without_weights(config: Config) -> Policy:
    """Returns the model of a config with its parameters' shapes alone, which factors depend on."""
    name = config.model if config.model in PUBLISHED else str(hub.locate(config.model))
    model, shapes = model_shapes(name)
    return Policy(model, make_chain(config, model), shapes, make_mesh(checks.fsdp(config)))


def export_lora(checkpoint: str, output: epath.Path, dtype: str) -> None:
    """Writes a run's LoRA factors alone; the arguments are those of `export_pipeline`.

    Raises:
      UserError, FileNotFoundError: as in `export_pipeline`, or the run has trained no LoRA.
    """
    path, step = trained.parse_model(checkpoint, "--checkpoint")
    if not trained.is_run(path):
        raise UserError(f"{path} is not the workdir of a run: leave out --lora.")
    config = trained.opening_config(path)
    adaptation = make_lora(config)
    if adaptation is None:
        raise UserError(f"{path} has trained all of the denoiser (config.lora.rank=0), not LoRA.")
    trained.check_trained(path, step)  # Before the model is fetched.
    policy = _without_weights(config)
    factors = trained.load_params(path, policy, step or "last")
    state = adaptation.to_pytorch(factors, policy.model.denoiser_name)
    with _whole_folder(output) as folder:
        weights.write_safetensors(folder / lora.FILE_NAME, state, dtype)
    logging.info("The factors belong to %s.", config.model)
