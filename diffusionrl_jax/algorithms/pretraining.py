"""The loss that the model was pretrained with, beside a method's own (Eqs. 8-9 of the paper)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.algorithms.losses import pretraining
from diffusionrl_jax.diffusion.guidance import conditions, passes
from diffusionrl_jax.diffusion.process import Process
from diffusionrl_jax.distributed.microbatch import map_microbatches, microbatch_count
from diffusionrl_jax.distributed.shards import apply_by_device, gathered
from diffusionrl_jax.learning import draws
from diffusionrl_jax.learning.examples import Examples
from diffusionrl_jax.learning.experience import Experience
from diffusionrl_jax.learning.objectives import Metrics, Scored
from diffusionrl_jax.models.text_encoders import text_from_arrays
from diffusionrl_jax.models.text_to_image import Text


@dataclasses.dataclass(frozen=True, eq=False)
class Pretraining:
    """The `Objective` of the denoiser's error on noised pictures.

    Attributes:
      process: the process that draws the times and adds the noise.
      seed: the run's seed.
      guidance_scale: the scale of classifier-free guidance that the denoiser is sampled with.
      weight: the factor of the loss.
      text_dropout: the probability that the empty prompt takes the place of a picture's caption.
      microbatch: how many captions each device encodes at a time; 0 means all at once.
    """

    process: Process
    seed: int
    guidance_scale: float
    weight: float
    text_dropout: float
    microbatch: int = 0

    metrics = {}  # There are none beside the loss.

    def examples(
        self, experience: Experience, scored: Scored, predict: Callable
    ) -> tuple[Examples, Text]:
        """Makes one update, on all pictures of the batch.

        The arguments and the result are those of `Objective.examples`.
        """
        pictures = scored.batch.pretraining
        assert pictures is not None
        places = jnp.arange(len(pictures["input_ids"]))
        keys = draws.keys(self.seed, scored.step, draws.PRETRAINING, places)
        examples, dropped = self.noised(pictures, keys)
        captions, empty = encode_captions(pictures, experience, scored, self.microbatch)
        captions = drop_text(captions, empty, dropped)
        both = conditions(captions, empty, self.guidance_scale)
        return examples, jax.tree.map(lambda array: array[None], both)

    def noised(
        self, pictures: Mapping[str, jax.Array], keys: jax.Array
    ) -> tuple[Examples, jax.Array]:
        """Draws pictures' latents, and noises them at times of their own.

        Args:
          pictures: "latent_mean" and "latent_std", float32 [B, ...].
          keys: PRNG keys [B].

        Returns:
          The examples of one update, and which pictures have the empty prompt in place of their
          caption, bool [B].
        """
        mean, std = pictures["latent_mean"], pictures["latent_std"]
        # One of two passes has the empty prompt: the loss is then its expectation over the dropout.
        dropout = self.text_dropout if passes(self.guidance_scale) == 1 else 0.0

        @jax.vmap
        def draw(key):
            keys = jax.random.split(key, 4)
            return (
                jax.random.normal(keys[0], mean.shape[1:]),
                jax.random.normal(keys[1], mean.shape[1:]),
                self.process.draw_time(keys[2]),
                jax.random.bernoulli(keys[3], dropout),
            )

        encoding_noise, noise, times, dropped = draw(keys)
        clean = mean + std * encoding_noise
        target = self.process.target(clean, noise, times)
        examples = Examples(
            latents=self.process.noise(clean, noise, times)[None],
            times=times[None],
            text=jnp.zeros(1, jnp.int32),
            weight=jnp.full(1, self.weight),
            objective=jnp.zeros(1, jnp.int32),
            own={"target": target[None]},
        )
        return examples, dropped

    def __call__(
        self, output: jax.Array, example: Examples, active: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Computes `losses.pretraining` of each sample; there are no metrics beside the loss."""
        return pretraining(output, example.own["target"], self.text_dropout), {}

    def summary(
        self, values: Mapping[str, np.ndarray], task_names: Sequence[str]
    ) -> dict[str, float]:
        """Returns "pretraining/loss" and "pretraining/gradient_norm" of the update."""
        return {f"pretraining/{name}": values[name][-1] for name in ("loss", "gradient_norm")}


def encode_captions(
    pictures: Mapping[str, jax.Array], experience: Experience, scored: Scored, microbatch: int
) -> tuple[Text, Text]:
    """Returns the text of pictures' captions, and that of the empty prompt.

    Args:
      pictures: "input_ids", int32 [B, tokens], or the text itself where it was encoded in advance.
      experience, scored: as in `Objective.examples`.
      microbatch: how many captions each device encodes at a time; 0 means all at once.

    Returns:
      Trees of [B, ...] and of [1, ...].
    """
    model, mesh = experience.model, experience.mesh
    by_blocks = experience.adaptation.by_blocks
    text_encoder = gathered(scored.frozen.text_encoder, mesh, model.dtype, by_blocks=by_blocks)
    captions = text_from_arrays(pictures)
    if captions is None:
        ids = pictures["input_ids"]
        count = microbatch_count(len(ids), microbatch, mesh.size)

        def encode(text_encoder, ids):
            return map_microbatches(
                functools.partial(model.encode_text, text_encoder), ids, count, mesh
            )

        captions = apply_by_device(encode, text_encoder, ids, mesh)
    empty_ids = scored.frozen.empty_ids[None]
    return captions, apply_by_device(
        model.encode_empty, text_encoder, empty_ids, mesh, is_split=False
    )


def drop_text(text: Text, empty: Text, dropped: jax.Array) -> Text:
    """Puts the empty prompt's text in the place of some samples' own.

    Args:
      text: the samples' text, a tree of [B, ...].
      empty: the text of the empty prompt, the same tree of [1, ...].
      dropped: bool [B], which samples get the text of the empty prompt.
    """
    choose = jax.vmap(jnp.where, in_axes=(0, None, 0))
    return jax.tree.map(lambda own, empty: choose(dropped, empty[0], own), text, empty)
