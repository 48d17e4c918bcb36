"""Classifier-free guidance (2207.12598): the denoiser sees a sample with a prompt, and without."""

import jax
import jax.numpy as jnp

from diffusionrl_jax.models.parameters import Parameters
from diffusionrl_jax.models.text_to_image import Text, TextToImage


def passes(guidance_scale: float) -> int:
    """Returns how often the denoiser sees a sample: with its text and, above 1, without it.

    PyTorch's pipelines guide above a scale of 1 only. At all other scales, 0 included, they draw
    what the prompt alone gives, as distilled models are sampled.
    """
    return 2 if guidance_scale > 1 else 1


def conditions(prompts: Text, empty: Text, guidance_scale: float) -> Text:
    """Returns the text that each pass of the denoiser sees.

    Args:
      prompts: what `encode_text` returns: [batch, tokens, width], or a tree of [batch, ...] arrays.
      empty: the same for the empty prompt, with a batch axis of 1 or none.
      guidance_scale: the scale, which decides the number of passes, as `passes` says.

    Returns:
      [batch, passes, tokens, width], or a tree of [batch, passes, ...] arrays.
    """
    if passes(guidance_scale) == 1:
        return jax.tree.map(lambda array: array[:, None], prompts)

    def stack(prompt, empty):
        return jnp.stack([prompt, jnp.broadcast_to(empty, prompt.shape)], axis=1)

    return jax.tree.map(stack, prompts, empty)


def denoise_passes(
    model: TextToImage,
    params: Parameters,
    latents: jax.Array,
    times: jax.Array,
    text: Text,
) -> jax.Array:
    """Runs the denoiser on every pass of every sample as one batch.

    What does not depend on the text is computed once for a sample.

    Args:
      model: the networks.
      params: the denoiser's parameters.
      latents: float32 [batch, ...].
      times: the process' times, [batch].
      text: what each pass sees, [batch, passes, ...], from `conditions`.

    Returns:
      float32 [batch, passes, ...].
    """
    flat = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), text)
    output = model.denoise(params, latents, times, flat)
    return output.reshape(len(latents), -1, *latents.shape[1:])


def guide(model_output: jax.Array, guidance_scale: float) -> jax.Array:
    """Moves predictions away from those for the empty prompt.

    Args:
      model_output: [batch, passes, ...]: the prediction for the prompt and, where passes is 2, that
        for the empty prompt.
      guidance_scale: the scale, which has no effect where passes is 1.

    Returns:
      [batch, ...].
    """
    if model_output.shape[1] == 1:
        return model_output[:, 0]
    conditional, unconditional = model_output[:, 0], model_output[:, 1]
    return unconditional + guidance_scale * (conditional - unconditional)
