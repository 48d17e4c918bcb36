"""Judges from the boxes of a detector whether a picture has the objects that were asked for."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.data.object_requests import COLOURS, RELATIONS, Request
from diffusionrl_jax.rewards.colour_names import name_boxes

ANY = -1  # Stands for any colour, or any place.
THINGS = 2  # A request has so many things at most.
# Of two boxes of one noun that share more than this of their union, the less certain one is left
# out, since both are of one object.
OVERLAP = 0.5
# A centre has to lie beyond another by this share of both boxes' sides, and by no less than this
# share of what lies between the centres the other way.
MARGIN, SLOPE = 0.1, 0.5


def encode_requests(requests: Sequence[Request]) -> dict[str, np.ndarray]:
    """Returns requests as arrays.

    Returns:
      {"mask": float32 [n, THINGS], 1 where a thing is asked for; "colour": int32 [n, THINGS], in
      `COLOURS` or `ANY`; "count": int32 [n, THINGS]; "relation": int32 [n], in `RELATIONS` or
      `ANY`}.
    """
    shape = len(requests), THINGS
    mask, colour = np.zeros(shape, np.float32), np.full(shape, ANY, np.int32)
    count, relation = np.ones(shape, np.int32), np.full(len(requests), ANY, np.int32)
    for row, request in enumerate(requests):
        for column, thing in enumerate(request.things):
            mask[row, column], count[row, column] = 1, thing.count
            if thing.colour:
                colour[row, column] = COLOURS.index(thing.colour)
        if request.relation:
            relation[row] = RELATIONS.index(request.relation)
    return {"mask": mask, "colour": colour, "count": count, "relation": relation}


def intersection_over_union(first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns the share of the union of boxes that is in both, of each with each.

    Args:
      first, second: float [..., k, 4] and [..., m, 4]: left, top, right, bottom.

    Returns:
      float [..., k, m]; 0 where the union is empty.
    """
    first, second = first[..., :, None, :], second[..., None, :, :]
    area = lambda boxes: jnp.prod(jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0), -1)
    low = jnp.maximum(first[..., :2], second[..., :2])
    high = jnp.minimum(first[..., 2:], second[..., 2:])
    shared = area(jnp.concatenate([low, high], -1))
    union = area(first) + area(second) - shared
    return shared / jnp.where(union > 0, union, 1)


def keep_objects(boxes: jax.Array, confidences: jax.Array, threshold: float) -> jax.Array:
    """Returns which boxes are objects of their own: greedy suppression of what is not largest.

    Args:
      boxes: float [..., k, 4]: left, top, right, bottom, the most certain first.
      confidences: float [..., k].
      threshold: the least confidence of an object.

    Returns:
      bool [..., k].
    """
    number = boxes.shape[-2]
    overlaps = intersection_over_union(boxes, boxes) > OVERLAP

    def suppress(index, kept):
        beaten = overlaps[..., index, :] & kept[..., index, None] & (jnp.arange(number) > index)
        return kept & ~beaten

    return jax.lax.fori_loop(0, number, suppress, confidences > threshold)


def relations(first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns which of `RELATIONS` hold, of each box to each other one.

    Args:
      first, second: float [..., k, 4] and [..., m, 4]: left, top, right, bottom, in one unit of
        length.

    Returns:
      bool [..., k, m, 4].
    """
    first, second = first[..., :, None, :], second[..., None, :, :]
    apart = (first[..., :2] + first[..., 2:] - second[..., :2] - second[..., 2:]) / 2
    sides = first[..., 2:] - first[..., :2] + second[..., 2:] - second[..., :2]
    far = (jnp.abs(apart) > MARGIN * sides) & (jnp.abs(apart) >= SLOPE * jnp.abs(apart[..., ::-1]))
    across, down = (far[..., axis] for axis in (0, 1))
    x, y = apart[..., 0], apart[..., 1]
    return jnp.stack([across & (x < 0), across & (x > 0), down & (y < 0), down & (y > 0)], -1)


def judge(
    images: jax.Array,
    boxes: jax.Array,
    confidences: jax.Array,
    inputs: Mapping[str, jax.Array],
    threshold: float,
) -> jax.Array:
    """Returns 1 for pictures that have all that was asked for, and 0 for others.

    A thing that is asked for by its number must be there as often; any other at least once. One
    object of the colour is enough for a colour, and one pair of objects for a relation.

    Args:
      images: float [n, height, width, 3] in [0, 1].
      boxes: float [n, THINGS, k, 4], those of each noun: left, top, right, bottom in shares of the
        picture, the most certain first.
      confidences: float [n, THINGS, k].
      inputs: what `encode_requests` returned, n rows.
      threshold: the least confidence of an object.

    Returns:
      float32 [n].
    """
    count, things, number, _ = boxes.shape
    kept = keep_objects(boxes, confidences, threshold)
    colours = name_boxes(images, boxes.reshape(count, things * number, 4)).reshape(kept.shape)
    wanted = jnp.asarray(inputs["colour"])[..., None]
    fitting = kept & ((wanted == ANY) | (colours == wanted))
    asked = jnp.asarray(inputs["count"])
    there = jnp.where(asked > 1, kept.sum(-1) == asked, fitting.any(-1))
    there = jnp.all(there | (jnp.asarray(inputs["mask"]) == 0), -1)
    # Shares of the width and of the height are no unit of length, unless the picture is square.
    sides = jnp.asarray([images.shape[2], images.shape[1]] * 2, jnp.float32)
    holds = relations(boxes[:, 0] * sides, boxes[:, 1] * sides)
    holds = (holds & fitting[:, 0, :, None, None] & fitting[:, 1, None, :, None]).any((1, 2))
    relation = jnp.asarray(inputs["relation"])
    placed = jnp.take_along_axis(holds, jnp.maximum(relation, 0)[:, None], 1)[:, 0]
    return (there & (placed | (relation == ANY))).astype(jnp.float32)
