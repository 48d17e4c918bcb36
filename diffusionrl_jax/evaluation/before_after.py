"""Draws the same prompts before and after training."""

import jax
from absl import logging
from etils import epath

from diffusionrl_jax.evaluation.evaluator import Evaluator
from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.monitoring.images import before_after, write_png


def draw_before_after(
    evaluator: Evaluator, base: Parameters, trained: Parameters, path: epath.Path
) -> None:
    """Draws the same prompts with the same noise by the base denoiser and by a trained one.

    Args:
      evaluator: has the model, its devices, and the sets that the prompts are from.
      base: the base denoiser's parameters.
      trained: the trained denoiser's parameters.
      path: the PNG file to write.
    """
    policy = evaluator.policy
    prompts = [text for texts in evaluator.prompts.values() for text in texts[::20][:4]]
    before, after = (
        evaluator.sampler(policy.with_denoiser(denoiser), prompts, evaluator.config.seed)
        for denoiser in (base, trained)
    )
    if jax.process_index() == 0:
        grid = before_after(before, after, prompts, scale=max(1, 96 // before.shape[1]))
        write_png(path, grid)
        logging.info("Wrote %s", path)
