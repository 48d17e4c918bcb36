"""An independent observer of the emoji world, which is for evaluation only and never a reward.

It is a small convolutional network with an architecture of its own, so that a policy that fools the
reward models (CLIP-like towers) does not thereby fool the observer.
"""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusionrl_jax.data.files import read_json, resolve
from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.parameters import apply


class RecogniserModule(nn.Module):
    """Convolutions of 3x3 in residual pairs, with a head for labels and one for tones.

    A label's logit is the smooth maximum over all places, and a tone's is of the mean.

    Attributes:
      widths: the channels of each stage. Each stage halves the picture.
      labels: how many labels there are.
      tones: how many tones there are.
    """

    widths: tuple[int, ...]
    labels: int
    tones: int

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the logits of labels and of tones, float32 [n, labels] and [n, tones].

        Args:
          images: [n, H, W, 3] in [0, 1].
        """
        hidden = 2 * images - 1
        for width in self.widths:
            hidden = nn.Conv(width, (3, 3), strides=(2, 2))(hidden)
            residual = nn.relu(nn.GroupNorm(num_groups=8)(hidden))
            residual = nn.Conv(width, (3, 3))(residual)
            hidden = hidden + residual
        hidden = nn.relu(nn.GroupNorm(num_groups=8)(hidden))
        rare = nn.initializers.constant(-6.0)
        places = nn.Dense(self.labels, bias_init=rare, name="label_head")(hidden)
        # A smooth maximum over places: an object counts wherever it is.
        labels = jax.nn.logsumexp(places, axis=(1, 2))
        tones = nn.Dense(self.tones, name="tone_head")(hidden.mean((1, 2)))
        return labels, tones


@dataclasses.dataclass(frozen=True, eq=False)
class Recogniser:
    """The observer's network, and what its outputs mean.

    Attributes:
      module: the network.
      labels: the names of objects and occupations.
      tones: the names of skin tones.
    """

    module: RecogniserModule
    labels: tuple[str, ...]
    tones: tuple[str, ...]

    def recognise(self, params: Mapping, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns what the pictures show.

        Args:
          params: the network's parameters, from `load_recogniser`.
          images: float [n, H, W, 3] in [0, 1].

        Returns:
          The probability of each object and occupation, independently of the others, float32 [n,
          labels]; and probabilities of the tones that sum to 1, float32 [n, tones], which mean
          nothing where there is no person.
        """
        labels, tones = apply(self.module, {"params": params}, images)
        return jax.nn.sigmoid(labels), jax.nn.softmax(tones)


def build(config: Mapping) -> Recogniser:
    """Builds the recogniser that a config {"widths", "labels", "tones"} describes."""
    labels, tones = tuple(config["labels"]), tuple(config["tones"])
    module = RecogniserModule(tuple(config["widths"]), len(labels), len(tones))
    return Recogniser(module, labels, tones)


def template(recogniser: Recogniser) -> dict:
    """Returns the shapes of the network's parameters."""
    pixels = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(recogniser.module.init, jax.random.key(0), pixels)["params"]


def load_recogniser(path: str = "asset:emoji/recogniser") -> tuple[Recogniser, dict]:
    """Opens a folder with config.json and model.safetensors.

    Raises:
      FileNotFoundError, UserError: a file or a tensor is missing, or does not fit.
    """
    folder = resolve(path, "The recogniser's folder")
    config = read_json(folder / "config.json")
    recogniser = build(config)
    file = folder / "model.safetensors"
    state = weights.read_safetensors(file)
    return recogniser, weights.to_flax(state, template(recogniser), source=str(file))
