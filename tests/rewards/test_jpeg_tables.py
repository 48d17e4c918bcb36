"""The standard's tables, against those that Pillow writes."""

import io

import pytest
from PIL import Image

from diffusionrl_jax.rewards import jpeg_tables


def test_quality_out_of_range_is_refused():
    with pytest.raises(ValueError, match="quality is 101"):
        jpeg_tables.quantisation(101)


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 95, 100])
def test_quantisation_is_that_of_pillows_files(quality):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=quality)
    theirs = Image.open(buffer).quantization
    for table, ours in zip((theirs[0], theirs[1]), jpeg_tables.quantisation(quality), strict=True):
        assert ours.reshape(-1).tolist() == list(table)


def segments(content):
    """The marker and the content of each segment before the scan."""
    place = 2
    while content[place + 1] != 0xDA:
        length = int.from_bytes(content[place + 2 : place + 4], "big")
        yield content[place + 1], content[place + 4 : place + 2 + length]
        place += 2 + length


def test_huffman_tables_are_those_of_pillows_files():
    """The segments of kind C4: a class and a number, 16 counts, and the symbols."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    stated = b"".join(part for marker, part in segments(buffer.getvalue()) if marker == 0xC4)
    found = {}
    while stated:
        count = sum(stated[1:17])
        found[stated[0]] = (stated[1:17].hex(), stated[17 : 17 + count].hex())
        stated = stated[17 + count :]
    assert found == {
        0x00: jpeg_tables.LUMA_DC,
        0x10: jpeg_tables.LUMA_AC,
        0x01: jpeg_tables.CHROMA_DC,
        0x11: jpeg_tables.CHROMA_AC,
    }


@pytest.mark.parametrize("codes", [*jpeg_tables.DC_CODES, *jpeg_tables.AC_CODES])
def test_no_code_begins_another(codes):
    """All are taken but one of the longest length, of ones alone, which T.81 reserves."""
    texts = [f"{code:0{length}b}" for code, length in codes if length]
    assert not any(a != b and b.startswith(a) for a in texts for b in texts)
    assert len(set(texts)) == len(texts) and not any(set(text) == {"1"} for text in texts)
    lengths = [len(text) for text in texts]
    assert sum(2.0**-length for length in lengths) == 1 - 2.0 ** -max(lengths)


def test_the_scan_goes_along_the_diagonals():
    sums = [place // 8 + place % 8 for place in jpeg_tables.ZIGZAG]
    assert sums == sorted(sums) and sorted(jpeg_tables.ZIGZAG) == list(range(64))
    assert jpeg_tables.ZIGZAG[:6].tolist() == [0, 1, 8, 16, 9, 2]
