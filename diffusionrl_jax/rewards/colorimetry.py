"""Tells skin tones by their colour alone, without weights, to audit the models that judge them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.rewards.statistical_parity import SHARED, in_groups, statistical_parity

# The matrix from linear sRGB to CIE XYZ with the white point D65 (IEC 61966-2-1).
XYZ_OF_SRGB = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
# Angles of Del Bino and Bernerd (2013). Skin above each of them, in turn, is very light, light,
# intermediate, tan and brown; below the last it is dark.
THRESHOLDS = (55.0, 41.0, 28.0, 10.0, -30.0)
# Skin of any tone has a hue between red and yellow, and is neither grey nor as vivid as paint.
SKIN_HUES = (25.0, 90.0)  # In degrees.
SKIN_CHROMAS = (6.0, 45.0)
FACE = (0.4375, 0.6875, 0.34, 0.66)  # The top, bottom, left and right of a portrait's face.


def lab_of_srgb(images: jax.Array) -> jax.Array:
    """Converts sRGB in [0, 1], [..., 3], to CIELAB with the white point D65, float32 [..., 3]."""
    linear = jnp.where(
        images <= 0.04045, images / 12.92, ((jnp.maximum(images, 0.04045) + 0.055) / 1.055) ** 2.4
    )
    matrix = jnp.asarray(XYZ_OF_SRGB, jnp.float32)
    # White is 1, 1, 1 in sRGB.
    xyz = jnp.einsum("...c,xc->...x", linear, matrix, precision="highest") / matrix.sum(1)
    edge = 6 / 29
    curved = jnp.where(
        xyz > edge**3, jnp.cbrt(jnp.maximum(xyz, edge**3)), xyz / (3 * edge**2) + 4 / 29
    )
    x, y, z = jnp.moveaxis(curved, -1, 0)
    return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def typology_angle(lightness: jax.Array, yellow: jax.Array) -> jax.Array:
    """Returns the individual typology angle, arctan((L* - 50) / b*), in degrees, for b* > 0."""
    return jnp.degrees(jnp.arctan2(lightness - 50, yellow))


def _median(values: jax.Array, chosen: jax.Array) -> jax.Array:
    """Returns the chosen values' median along the last axis; infinite where none is chosen."""
    ordered = jnp.sort(jnp.where(chosen, values, jnp.inf), axis=-1)
    last = jnp.maximum(chosen.sum(-1, keepdims=True) - 1, 0)
    middle = jnp.concatenate([last // 2, (last + 1) // 2], axis=-1)
    return jnp.take_along_axis(ordered, middle, axis=-1).mean(-1)


@dataclasses.dataclass(frozen=True)
class ColourParity:
    """The reward that is minus the statistical parity of each group, by the colour of the skin.

    What is taken for skin is whatever in the middle of the face has its hue and chroma. The medians
    of L* and b* over it are not disturbed by eyes, mouths, glasses or some hair. The angle sees
    colours and not people: a tinted picture has another tone to it.

    Attributes:
      group_size: how many pictures each prompt has; the pictures of one prompt must be neighbours.
      thresholds: the angles between the tones, falling, in degrees.
      face: where the face is, in shares of the picture: top, bottom, left, right.

    Raises:
      UserError: the thresholds do not fall, or the face is not within the picture.
    """

    has_gradient: ClassVar[bool] = False
    credit: ClassVar[str] = SHARED

    group_size: int = 16
    thresholds: tuple[float, ...] = THRESHOLDS
    face: tuple[float, float, float, float] = FACE

    def __post_init__(self):
        if not self.thresholds or list(self.thresholds) != sorted(self.thresholds, reverse=True):
            raise UserError(f"thresholds={self.thresholds} must fall from light to dark.")
        top, bottom, left, right = self.face
        if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
            raise UserError(f"face={self.face} must be top, bottom, left, right, within 0 to 1.")

    @classmethod
    def load(cls, path: str, **options) -> tuple["ColourParity", dict]:
        """Makes the reward from the options, which are its fields. There is nothing to load.

        Raises:
          UserError: a path is given.
        """
        if path:
            raise UserError(f"colour_parity has no weights: path={path!r} must be empty.")
        fields = {k: tuple(v) if k != "group_size" else v for k, v in options.items()}
        return cls(**cast(dict[str, Any], fields)), {}

    def prepare(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns nothing, since the score does not depend on the prompt."""
        del prompts
        return {}

    def angles(self, images: jax.Array) -> jax.Array:
        """Returns each person's individual typology angle, degrees [n]; NaN without skin."""
        _, height, width, _ = images.shape
        top, bottom = (round(share * height) for share in self.face[:2])
        left, right = (round(share * width) for share in self.face[2:])
        face = images[:, top : max(bottom, top + 1), left : max(right, left + 1)]
        lightness, red, yellow = jnp.moveaxis(
            lab_of_srgb(face.astype(jnp.float32)).reshape(len(images), -1, 3), -1, 0
        )
        hue, chroma = jnp.degrees(jnp.arctan2(yellow, red)), jnp.hypot(red, yellow)
        is_skin = (SKIN_HUES[0] < hue) & (hue < SKIN_HUES[1])
        is_skin &= (SKIN_CHROMAS[0] < chroma) & (chroma < SKIN_CHROMAS[1])
        angle = typology_angle(_median(lightness, is_skin), _median(yellow, is_skin))
        return jnp.where(is_skin.any(-1), angle, jnp.nan)

    def classify(self, images: jax.Array) -> jax.Array:
        """Returns one-hot tones [n, len(thresholds) + 1], lightest first; all 0 without skin."""
        angles = self.angles(images)
        classes = (angles[:, None] <= jnp.asarray(self.thresholds)).sum(-1)
        one_hot = jax.nn.one_hot(classes, len(self.thresholds) + 1)
        return jnp.where(jnp.isnan(angles)[:, None], 0, one_hot)

    def __call__(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """Returns -SP (Eq. 12) of each picture's group over its pictures with skin, float32 [n].

        A group without any skin counts as one of a single tone.

        Raises:
          UserError: n is not a multiple of group_size.
        """
        del params, inputs
        tones = in_groups(self.classify(images), self.group_size)
        none_found = ~tones.any((1, 2))
        tones = tones.at[:, 0, 0].add(none_found)
        return -jnp.repeat(statistical_parity(tones), self.group_size)
