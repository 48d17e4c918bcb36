"""The table of places of Stable Diffusion 3's tokens, of which a picture uses the middle.

It is a buffer of the published networks, and no parameter.
"""

import numpy as np

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.mmdit.layers import SLOWEST

TABLE = "pos_embed.pos_embed"


def position_table(most: int, base: int, width: int) -> np.ndarray:
    """Computes the table of a network that is trained from scratch.

    Args:
      most: the rows, and the columns, of the table.
      base: the rows, and the columns, of tokens of a picture of the network's own size, over which
        the places go from 0 to `base`, whatever `most` is.
      width: how many numbers a token has, a multiple of 4.

    Returns:
      The sines and cosines of each token's column, then those of its row, float32 [1, most * most,
      width].
    """
    frequencies = SLOWEST ** -(np.arange(width // 4) / (width / 4))
    angles = (np.arange(most) / np.float32(most / base)).astype(np.float32)[:, None] * frequencies
    of_one = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    shape = (most, most, width // 2)
    columns = np.broadcast_to(of_one[None], shape)
    rows = np.broadcast_to(of_one[:, None], shape)
    return np.concatenate([columns, rows], axis=2).astype(np.float32).reshape(1, -1, width)


def middle(table: np.ndarray, most: int, rows: int, columns: int) -> np.ndarray:
    """Returns the middle of a table, float32 [rows * columns, width].

    Args:
      table: [1, most * most, width].
      most: the rows, and the columns, of the table.
      rows, columns: how many tokens lie along a side of the picture.

    Raises:
      UserError: the picture has more than the table.
    """
    if max(rows, columns) > most:
        raise UserError(
            f"A picture of {rows} x {columns} patches is larger than the transformer's table of "
            f"places, which has {most} x {most}: choose smaller pictures."
        )
    top, left = (most - rows) // 2, (most - columns) // 2
    square = table.reshape(most, most, -1)[top : top + rows, left : left + columns]
    return square.astype(np.float32).reshape(rows * columns, -1)
