"""Skin tones by their colour alone, without weights: an audit of the models that judge them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.rewards.statistical_parity import statistical_parity

# Of linear sRGB to CIE XYZ with the white point D65 (IEC 61966-2-1).
XYZ_OF_SRGB = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
# Del Bino and Bernerd (2013): above each, very light, light, intermediate, tan, brown; else dark.
THRESHOLDS = (55.0, 41.0, 28.0, 10.0, -30.0)
# Skin of all tones is more yellow than it is red, and neither grey nor as bright as paint.
SKIN_HUES = (25.0, 90.0)  # degrees
SKIN_CHROMAS = (6.0, 45.0)
FACE = (0.4375, 0.6875, 0.34, 0.66)  # of a portrait: top, bottom, left, right


def lab_of_srgb(images: jax.Array) -> jax.Array:
    """CIELAB of sRGB in [0, 1], white point D65: float32 [..., 3]."""
    linear = jnp.where(
        images <= 0.04045, images / 12.92, ((jnp.maximum(images, 0.04045) + 0.055) / 1.055) ** 2.4
    )
    matrix = jnp.asarray(XYZ_OF_SRGB, jnp.float32)
    # The white of sRGB is 1, 1, 1.
    xyz = jnp.einsum("...c,xc->...x", linear, matrix, precision="highest") / matrix.sum(1)
    edge = 6 / 29
    curved = jnp.where(
        xyz > edge**3, jnp.cbrt(jnp.maximum(xyz, edge**3)), xyz / (3 * edge**2) + 4 / 29
    )
    x, y, z = jnp.moveaxis(curved, -1, 0)
    return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def typology_angle(lightness: jax.Array, yellow: jax.Array) -> jax.Array:
    """The individual typology angle, arctan((L* - 50) / b*), in degrees, of b* > 0."""
    return jnp.degrees(jnp.arctan2(lightness - 50, yellow))


def _median(values: jax.Array, chosen: jax.Array) -> jax.Array:
    """Medians over the last axis of the chosen values; of none, infinite."""
    ordered = jnp.sort(jnp.where(chosen, values, jnp.inf), axis=-1)
    last = jnp.maximum(chosen.sum(-1, keepdims=True) - 1, 0)
    middle = jnp.concatenate([last // 2, (last + 1) // 2], axis=-1)
    return jnp.take_along_axis(ordered, middle, axis=-1).mean(-1)


@dataclasses.dataclass(frozen=True)
class ColourParity:
    """Minus the statistical parity of each group, by the colour of the skin.

    The skin is what in the middle of the face has its hue and chroma; the medians of L* and b* over
    it pass over eyes, mouths, glasses and what hair is there. The angle sees colours and not
    people: a picture that is tinted is another tone to it.

    Attributes:
      group_size: pictures per prompt; the pictures of one prompt must be contiguous.
      thresholds: between the tones, falling, degrees.
      face: where a face is, in shares of the picture: top, bottom, left, right.
    """

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
        """Nothing to load; the options are the fields.

        Raises:
          UserError: a path is given.
        """
        if path:
            raise UserError(f"colour_parity has no weights: path={path!r} must be empty.")
        fields = {k: tuple(v) if k != "group_size" else v for k, v in options.items()}
        return cls(**cast(dict[str, Any], fields)), {}

    def prepare(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Nothing: the score looks at the pictures alone."""
        del prompts
        return {}

    def angles(self, images: jax.Array) -> jax.Array:
        """The individual typology angle of each person: degrees [n]; NaN where no skin is found."""
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
        """One-hot tones [n, len(thresholds) + 1], light ones first; all 0 without skin."""
        angles = self.angles(images)
        classes = (angles[:, None] <= jnp.asarray(self.thresholds)).sum(-1)
        one_hot = jax.nn.one_hot(classes, len(self.thresholds) + 1)
        return jnp.where(jnp.isnan(angles)[:, None], 0, one_hot)

    def __call__(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """-SP (Eq. 12) of each picture's group over those with skin: float32 [n].

        A group without any skin counts as one of a single tone.
        """
        del params, inputs
        tones = self.classify(images).reshape(-1, self.group_size, len(self.thresholds) + 1)
        none_found = ~tones.any((1, 2))
        tones = tones.at[:, 0, 0].add(none_found)
        return -jnp.repeat(statistical_parity(tones), self.group_size)
