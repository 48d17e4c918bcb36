"""The size of the picture's JPEG file, computed in the graph and exact to the byte.

DDPO's compressibility reward (Black et al., arXiv 2305.13301) calls Pillow on the host. Here
libjpeg's integer pipeline is written in jnp, so that the step stays one compiled function; the
result is Pillow's byte count. It is piecewise constant, and therefore for policy gradients only.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from diffusionrl_jax.rewards import jpeg_tables

HEADER_BYTES = 623  # SOI, JFIF, two quantisation tables, frame, four Huffman tables, scan
TRAILER_BYTES = 2  # EOI
BITS_OF_DCT_CONSTANTS = 13
BITS_OF_FIRST_PASS = 2
MAX_CODE_BITS = 26  # A 16-bit Huffman code and 10 bits of value.


def _ycc(pixels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Converts RGB to fixed-point YCbCr (libjpeg's jccolor.c): int32 [H, W, 3] to three [H, W]."""
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    half = 1 << 15
    offset = (128 << 16) + half - 1
    luma = (19595 * red + 38470 * green + 7471 * blue + half) >> 16
    blueness = (-11059 * red - 21709 * green + 32768 * blue + offset) >> 16
    redness = (32768 * red - 27439 * green - 5329 * blue + offset) >> 16
    return luma, blueness, redness


def _pad_edge(plane: jax.Array, rows: int, columns: int) -> jax.Array:
    """Repeats the last row and column up to the given size."""
    height, width = plane.shape
    return jnp.pad(plane, ((0, rows - height), (0, columns - width)), mode="edge")


def _halve(plane: jax.Array, block_rows: int, block_columns: int) -> jax.Array:
    """Averages 2x2 pixels with libjpeg's alternating rounding, and pads to whole blocks.

    Columns are repeated before the averaging and rows after it, as libjpeg's preprocessing does.
    """
    height = plane.shape[0] + plane.shape[0] % 2
    padded = _pad_edge(plane, height, 16 * block_columns)
    sums = padded.reshape(height // 2, 2, 8 * block_columns, 2).sum((1, 3))
    rounding = 1 + jnp.arange(8 * block_columns) % 2
    return _pad_edge((sums + rounding) >> 2, 8 * block_rows, 8 * block_columns)


def _blocks(plane: jax.Array) -> jax.Array:
    """Cuts a plane of [8 rows, 8 columns] pixels into blocks [rows, columns, 8, 8]."""
    rows, columns = plane.shape[0] // 8, plane.shape[1] // 8
    return plane.reshape(rows, 8, columns, 8).transpose(0, 2, 1, 3)


def _dct_pass(samples: jax.Array, first: bool) -> jax.Array:
    """Computes one pass of libjpeg's accurate integer DCT (jfdctint.c) over the last axis."""
    s = [samples[..., index] for index in range(8)]
    even = [s[0] + s[7], s[1] + s[6], s[2] + s[5], s[3] + s[4]]
    odd = [s[3] - s[4], s[2] - s[5], s[1] - s[6], s[0] - s[7]]
    sum_outer, difference_outer = even[0] + even[3], even[0] - even[3]
    sum_inner, difference_inner = even[1] + even[2], even[1] - even[2]
    shift = BITS_OF_DCT_CONSTANTS + (-BITS_OF_FIRST_PASS if first else BITS_OF_FIRST_PASS)

    def descale(value, bits):
        return (value + (1 << (bits - 1))) >> bits

    def small(value):
        return value << BITS_OF_FIRST_PASS if first else descale(value, BITS_OF_FIRST_PASS)

    rotated = (difference_inner + difference_outer) * 4433
    z1, z2 = odd[0] + odd[3], odd[1] + odd[2]
    z3, z4 = odd[0] + odd[2], odd[1] + odd[3]
    z5 = (z3 + z4) * 9633
    z1, z2 = z1 * -7373, z2 * -20995
    z3, z4 = z3 * -16069 + z5, z4 * -3196 + z5
    outputs = [
        small(sum_outer + sum_inner),
        descale(odd[3] * 12299 + z1 + z4, shift),
        descale(rotated + difference_outer * 6270, shift),
        descale(odd[2] * 25172 + z2 + z3, shift),
        small(sum_outer - sum_inner),
        descale(odd[1] * 16819 + z2 + z4, shift),
        descale(rotated - difference_inner * 15137, shift),
        descale(odd[0] * 2446 + z1 + z3, shift),
    ]
    return jnp.stack(outputs, -1)


def _quantised(plane: jax.Array, quantisation: jax.Array) -> jax.Array:
    """Returns pixels' quantised coefficients by block, in zigzag order: [rows, columns, 64]."""
    rows_done = _dct_pass(_blocks(plane) - 128, first=True)
    coefficients = _dct_pass(rows_done.swapaxes(-1, -2), first=False).swapaxes(-1, -2)
    divisor = 8 * quantisation
    magnitude = (jnp.abs(coefficients) + (divisor >> 1)) // divisor
    quantised = jnp.sign(coefficients) * magnitude
    return quantised.reshape(*quantised.shape[:2], 64)[..., jpeg_tables.ZIGZAG]


def _luma_in_scan_order(blocks: jax.Array, rows: int, columns: int) -> jax.Array:
    """Orders luma blocks as the interleaved scan has them, four in each minimum coded unit.

    A unit that reaches over the edge has dummy blocks: they have no AC, and the DC of the block
    that is coded just before (jccoefct.c).

    Args:
      blocks: [luma rows, luma columns, 64].
      rows: the number of rows of units.
      columns: the number of columns of units.

    Returns:
      [rows * columns, 4, 64].
    """
    missing_rows, missing_columns = 2 * rows - blocks.shape[0], 2 * columns - blocks.shape[1]
    padded = jnp.pad(blocks, ((0, missing_rows), (0, missing_columns), (0, 0)))
    if missing_columns:
        padded = padded.at[:, -1, 0].set(padded[:, -2, 0])
    if missing_rows:  # The last block of the unit's upper row is the one coded just before.
        padded = padded.at[-1, :, 0].set(jnp.repeat(padded[-2, 1::2, 0], 2))
    units = padded.reshape(rows, 2, columns, 2, 64).transpose(0, 2, 1, 3, 4)
    return units.reshape(rows * columns, 4, 64)


def _category(value: jax.Array) -> jax.Array:
    """Returns the number of bits of |value|, which must be below 2^15."""
    return jnp.sum(jnp.abs(value)[..., None] >= 2 ** jnp.arange(15), -1)


def _value_bits(value: jax.Array, category: jax.Array) -> jax.Array:
    """Returns the bits that follow a Huffman code; negative numbers are in one's complement."""
    return jnp.where(value < 0, value + (1 << category) - 1, value)


def _codes(blocks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Codes blocks by Huffman, with a slot for each coefficient and one for the end of the block.

    Args:
      blocks: [units, 6, 64], four luma blocks and two chroma blocks in each unit, in zigzag order.
        The first coefficient is already a difference of DCs.

    Returns:
      The bits as a number, and how many bits they are, int32 [units, 6, 65] each. Unused slots have
      0 bits.
    """
    component = jnp.array([0, 0, 0, 0, 1, 1])[:, None]
    dc, ac = jnp.asarray(jpeg_tables.DC_CODES), jnp.asarray(jpeg_tables.AC_CODES)
    category = _category(blocks)
    bits = _value_bits(blocks, category)
    code, length = jnp.moveaxis(dc[component, category[..., :1]], -1, 0)
    first_code = (code << category[..., :1]) | bits[..., :1]
    first_length = length + category[..., :1]

    position = jnp.arange(1, 64)
    nonzero = blocks[..., 1:] != 0
    marked = jnp.where(nonzero, position, 0)
    seen = jax.lax.cummax(marked, axis=marked.ndim - 1)
    previous = jnp.pad(seen[..., :-1], [(0, 0)] * (seen.ndim - 1) + [(1, 0)])
    last = seen[..., -1:]
    run = position - previous - 1
    symbol = (run % 16) * 16 + category[..., 1:]
    code, length = jnp.moveaxis(ac[component, symbol], -1, 0)
    value_code = (code << category[..., 1:]) | bits[..., 1:]
    value_length = length + category[..., 1:]
    # The sixteenth zero of a run that a value follows has a code of its own.
    sixteenth = ~nonzero & (run % 16 == 15) & (position < last)
    zrl, eob = ac[component, jpeg_tables.ZRL], ac[component, jpeg_tables.EOB]
    rest_code = jnp.where(nonzero, value_code, jnp.where(sixteenth, zrl[..., 0], 0))
    rest_length = jnp.where(nonzero, value_length, jnp.where(sixteenth, zrl[..., 1], 0))

    ended = last < 63
    end_code, end_length = jnp.where(ended, eob[..., 0], 0), jnp.where(ended, eob[..., 1], 0)
    codes = jnp.concatenate([first_code, rest_code, end_code], -1)
    lengths = jnp.concatenate([first_length, rest_length, end_length], -1)
    return codes, lengths


def _scan_bytes(codes: jax.Array, lengths: jax.Array) -> jax.Array:
    """Counts the bytes of the entropy-coded scan, with a zero stuffed after each byte 0xFF.

    Args:
      codes: int32 [slots] in the order of the scan.
      lengths: int32 [slots], at most 26 bits each.

    Returns:
      int32 scalar.
    """
    ends = jnp.cumsum(lengths)
    starts = ends - lengths
    room = codes.size * MAX_CODE_BITS // 8 + 2
    stream = jnp.zeros(room, jnp.int32)
    for index in range((MAX_CODE_BITS + 7) // 8 + 1):
        surplus = starts % 8 + lengths - 8 * (index + 1)
        shifted = jnp.where(
            surplus >= 0,
            codes >> jnp.clip(surplus, 0, 31),
            codes << jnp.clip(-surplus, 0, 8),
        )
        stream = stream.at[starts // 8 + index].add(shifted & 255, mode="drop")
    total = ends[-1]
    size = (total + 7) // 8
    stream = stream.at[size - 1].add((1 << (8 * size - total)) - 1)  # The last byte ends in ones.
    return size + jnp.sum((stream == 255) & (jnp.arange(room) < size))


def jpeg_bytes(image: jax.Array, quantisation: jax.Array) -> jax.Array:
    """Returns the size of what Pillow writes for `image.save(..., "JPEG", quality=quality)`.

    Args:
      image: integers [height, width, 3] in 0..255.
      quantisation: int32 [2, 8, 8], the tables of luma and chroma,
        `jpeg_tables.quantisation(quality)`.

    Returns:
      int32 scalar, bytes.
    """
    height, width = image.shape[:2]
    rows, columns = -(-height // 16), -(-width // 16)
    luma, *chroma = _ycc(image.astype(jnp.int32))
    luma = _pad_edge(luma, -(-height // 8) * 8, -(-width // 8) * 8)
    luma = _luma_in_scan_order(_quantised(luma, quantisation[0]), rows, columns)
    chroma = jax.vmap(lambda plane: _quantised(_halve(plane, rows, columns), quantisation[1]))(
        jnp.stack(chroma)
    ).reshape(2, rows * columns, 64)
    # Each component's DC is coded as the difference from that of its block before, in scan order.
    luma_difference = jnp.diff(luma[..., 0].ravel(), prepend=0).reshape(-1, 4)
    luma = luma.at[..., 0].set(luma_difference)
    chroma = chroma.at[..., 0].set(jnp.diff(chroma[..., 0], prepend=0))
    codes, lengths = _codes(jnp.concatenate([luma, chroma.swapaxes(0, 1)], 1))
    return HEADER_BYTES + TRAILER_BYTES + _scan_bytes(codes.ravel(), lengths.ravel())


@dataclasses.dataclass(frozen=True)
class JpegSize:
    """The reward that is the size of the picture as a JPEG file, 4:2:0, in kilobytes (1000 bytes).

    Attributes:
      quality: libjpeg's quality, 1 to 100; DDPO's code uses 95.
      sign: -1 rewards small files (compressibility), +1 large ones.
    """

    has_gradient: ClassVar[bool] = False

    quality: int = 95
    sign: float = -1.0

    @classmethod
    def load(cls, path: str = "", **options) -> tuple["JpegSize", dict]:
        """Makes the reward from the options, which are its fields. `path` is ignored."""
        del path
        return cls(**options), {}

    def prepare(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns nothing, since the score does not depend on the prompt."""
        del prompts
        return {}

    def __call__(self, params: Mapping, images: jax.Array, inputs: Mapping) -> jax.Array:
        """Scores float images [n, H, W, 3] in [0, 1]: float32 [n], kilobytes times `sign`."""
        del params, inputs
        pixels = jnp.round(jnp.clip(images, 0, 1) * 255).astype(jnp.int32)
        quantisation = jnp.asarray(jpeg_tables.quantisation(self.quality))
        sizes = jax.vmap(jpeg_bytes, (0, None))(pixels, quantisation)
        return self.sign * sizes.astype(jnp.float32) / 1000
