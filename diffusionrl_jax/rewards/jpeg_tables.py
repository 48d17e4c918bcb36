"""The JPEG standard's tables (ITU-T T.81, Annex K), as libjpeg uses them by default."""

import numpy as np

from diffusionrl_jax.mistakes import UserError

LUMA_QUANTISATION = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_QUANTISATION = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)

# How many symbols have a code of each length (1 to 16 bits), and the symbols in their codes' order.
LUMA_DC = ("00010501010101010100000000000000", "000102030405060708090a0b")
CHROMA_DC = ("00030101010101010101010000000000", "000102030405060708090a0b")
LUMA_AC = (
    "0002010303020403050504040000017d",
    "01020300041105122131410613516107227114328191a1082342b1c11552d1f02433627282090a161718191a"
    "25262728292a3435363738393a434445464748494a535455565758595a636465666768696a73747576777879"
    "7a838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9"
    "cad2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa",
)
CHROMA_AC = (
    "00020102040403040705040400010277",
    "000102031104052131061241510761711322328108144291a1b1c109233352f0156272d10a162434e125f117"
    "18191a262728292a35363738393a434445464748494a535455565758595a636465666768696a737475767778"
    "797a82838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7"
    "c8c9cad2d3d4d5d6d7d8d9dae2e3e4e5e6e7e8e9eaf2f3f4f5f6f7f8f9fa",
)
EOB = 0x00  # The symbol that ends a block.
ZRL = 0xF0  # The symbol of sixteen zeros.


def _zigzag() -> np.ndarray:
    """Returns the row-major positions of the 8x8 coefficients in the order of the scan."""
    cells = [(row, column) for row in range(8) for column in range(8)]
    upwards = lambda cell: cell[1] if sum(cell) % 2 == 0 else cell[0]  # noqa: E731
    ordered = sorted(cells, key=lambda cell: (sum(cell), upwards(cell)))
    return np.array([8 * row + column for row, column in ordered])


ZIGZAG = _zigzag()


def _huffman(counts: str, symbols: str, size: int) -> np.ndarray:
    """Returns each symbol's code and its length in bits, int32 [size, 2] (T.81, Annex C)."""
    table = np.zeros((size, 2), np.int32)
    remaining = iter(bytes.fromhex(symbols))
    code = 0
    for length, count in enumerate(bytes.fromhex(counts), start=1):
        for _ in range(count):
            table[next(remaining)] = code, length
            code += 1
        code <<= 1
    return table


# int32 [2, symbols, 2]: luma's and chroma's.
DC_CODES = np.stack([_huffman(*LUMA_DC, 16), _huffman(*CHROMA_DC, 16)])
AC_CODES = np.stack([_huffman(*LUMA_AC, 256), _huffman(*CHROMA_AC, 256)])


def quantisation(quality: int) -> np.ndarray:
    """Scales the standard tables by quality as libjpeg does (jpeg_set_quality), for baseline files.

    Returns:
      int32 [2, 8, 8], the tables of luma and chroma.

    Raises:
      UserError: the quality is not in 1..100.
    """
    if not 1 <= quality <= 100:
        raise UserError(f"JPEG quality is {quality}; it must be in 1..100.")
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    tables = np.array([LUMA_QUANTISATION, CHROMA_QUANTISATION], np.int32)
    return np.clip((tables * scale + 50) // 100, 1, 255)
