import io
import struct
import subprocess
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image, ImageOps, PngImagePlugin

from diffusionrl_jax.data import pictures

FEATURES = tfds.features.FeaturesDict(
    {"image": tfds.features.Text(), "caption": tfds.features.Text()}
)


def encoded(image, kind="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def stripes(width, height):
    """Left third red, middle green, right blue."""
    image = Image.new("RGB", (width, height), (0, 255, 0))
    image.paste((255, 0, 0), (0, 0, width // 3, height))
    image.paste((0, 0, 255), (width - width // 3, 0, width, height))
    return image


def write(path, records):
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for image, caption in records:
        writer.write(FEATURES.serialize_example({"image": image, "caption": caption}))
    writer.close()


@pytest.fixture
def folder(tmp_path):
    write(
        tmp_path / "a.array_record-00000-of-00002",
        [(encoded(stripes(30, 10)), "wide"), (encoded(stripes(30, 90).convert("L")), "grey")],
    )
    write(tmp_path / "a.array_record-00001-of-00002", [(encoded(stripes(48, 16), "jpeg"), "é")])
    return tmp_path


def test_pictures_are_cropped_to_the_middle(folder):
    source = pictures.open_pictures(f"array_record:{folder}", 10, 10)
    assert len(source) == 3
    image, text = source[0]
    assert (image.dtype, image.shape, text) == (np.uint8, (10, 10, 3), "wide")
    assert (image == (0, 255, 0)).all()
    assert [source[n][1] for n in range(3)] == ["wide", "grey", "é"]
    grey = source[1][0]
    assert (grey[..., 0] == grey[..., 1]).all()
    assert len(np.unique(grey[5])) > 2


def test_mapped_pictures_are_fitted_as_well():
    wide = np.asarray(stripes(30, 10))
    (image, text), (same, _) = (
        pictures.MappedPictures([{"image": wide, "prompt": "é".encode()}], "", *size)[0]
        for size in ((10, 10), (10, 30))
    )
    assert text == "é" and (image == (0, 255, 0)).all() and image.shape == (10, 10, 3)
    np.testing.assert_array_equal(same, wide)


def test_resizing_is_pillows_bicubic():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    expected = image.resize((16, 16), Image.Resampling.BICUBIC, box=(10, 0, 50, 40))
    np.testing.assert_array_equal(pictures.fit(image, 16, 16), np.asarray(expected))
    np.testing.assert_array_equal(pictures.fit(image, 40, 60), np.asarray(image))


def test_sideways_photographs_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned by 90 degrees clockwise.
    with Image.open(io.BytesIO(encoded(stripes(12, 6), "png", exif=exif))) as image:
        turned = pictures.fit(image, 12, 6)
    np.testing.assert_array_equal(turned, np.rot90(np.asarray(stripes(12, 6)), -1))


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_turned_as_pillow_does(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    file = encoded(Image.fromarray(pixels), "png", exif=exif)
    with Image.open(io.BytesIO(file)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(pictures.read_picture(file, 8, 8), expected)


def tiff(*entries, behind=b""):
    """EXIF of the entries (tag, type, count, four bytes), put together by TIFF 6.0, section 2."""
    listed = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries))
    return head + listed + bytes(4) + behind


TURNED = (0x0112, 3, 1, struct.pack("<HH", 6, 0))


@pytest.mark.parametrize(
    ("exif", "is_turned"),
    [
        (tiff(TURNED, (0x011A, 2, 4, b"72\0\0")), True),
        (tiff(TURNED, (0x8769, 2, 4, b"abc\0")), True),
        # The tag may hold no fraction below 0.
        (
            tiff(TURNED, (0x011A, 10, 1, struct.pack("<I", 38)), behind=struct.pack("<ii", -1, 0)),
            True,
        ),
        (tiff((0x0112, 2, 2, b"6\0\0\0")), False),
        (b"Exif\0\0garbage garbage", False),
        (b"Exif\0\0II*\0\x08\0\0\0\x05\0", False),
    ],
)
def test_strange_exif_costs_no_picture(exif, is_turned):
    picture = pictures.read_picture(
        encoded(stripes(24, 48), "jpeg", quality=100, exif=exif), 24, 24
    )
    upright = pictures.read_picture(encoded(stripes(24, 48), "jpeg", quality=100), 24, 24)
    turned = np.rot90(upright, -1)
    np.testing.assert_array_equal(picture, turned if is_turned else upright)


def test_long_texts_of_png():
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", "x" * 2**21, zip=True)
    picture = pictures.read_picture(encoded(stripes(24, 16), pnginfo=text), 16, 24)
    np.testing.assert_array_equal(picture, np.asarray(stripes(24, 16)))
    bomb = PngImagePlugin.PngInfo()
    bomb.add_text("prompt", "x" * (2**26 + 1), zip=True)
    with pytest.raises(ValueError, match="too large"):
        pictures.read_picture(encoded(stripes(24, 16), pnginfo=bomb), 16, 24)


def test_fingerprint_knows_content_and_size(folder):
    fingerprint = lambda size: (
        pictures.open_pictures(f"array_record:{folder}", size, size).fingerprint
    )
    first = fingerprint(8)
    assert first == fingerprint(8) != fingerprint(16)
    write(folder / "a.array_record-00002-of-00003", [(encoded(stripes(9, 9)), "more")])
    assert fingerprint(8) != first


def test_broken_pictures_are_named(folder):
    whole = encoded(stripes(30, 30))
    write(folder / "b.array_record", [(whole[: len(whole) // 2], "cut"), (b"", "none")])
    write(folder / "c.array_record", [(whole, b"caf\xe9")])
    source = pictures.open_pictures(f"array_record:{folder}", 8, 8)
    for index in (3, 4):
        with pytest.raises(ValueError, match=f"record {index} .*'image' is not a picture.*leave"):
            source[index]
    with pytest.raises(ValueError, match="record 5 .*byte 4 is not UTF-8"):
        source[5]
    source = pictures.open_pictures(f"array_record:{folder}?text=alt", 8, 8)
    with pytest.raises(ValueError, match="record 0 .*feature 'alt' is NoneType"):
        source[0]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "avif", "gif", "bmp"])
def test_the_formats_that_are_read(kind):
    """Exact but for the colours of JPEG and AVIF, of a picture without edges there."""
    is_exact = kind not in ("jpeg", "avif")
    image = stripes(24, 16) if is_exact else Image.new("RGB", (24, 16), (10, 200, 90))
    picture = pictures.read_picture(encoded(image, kind, lossless=True), 16, 24)
    np.testing.assert_allclose(picture, np.asarray(image), atol=0 if is_exact else 3)


def png(depth, kind, width, *rows, **chunks):
    """A PNG, put together by its specification (ISO 15948)."""

    def chunk(name, content):
        checked = name.encode() + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk("IHDR", header)
        + b"".join(chunk(*item) for item in chunks.items())
        + chunk("IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
        + chunk("IEND", b"")
    )


def words(*values):
    return struct.pack(f">{len(values)}H", *values)


GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6
COLOURS = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255])


@pytest.mark.parametrize(
    ("file", "pixels"),
    [
        (png(16, GREY, 4, words(0, 257, 32768, 65535)), [0, 1, 128, 255]),
        (png(16, GREY, 3, words(0, 300, 301), tRNS=words(300)), [0, 255, 1]),
        (png(16, GREY_ALPHA, 2, words(32768, 65535, 32768, 0)), [128, 255]),
        (png(1, GREY, 4, b"\x50"), [0, 255, 0, 255]),
        (png(1, GREY, 2, b"\x40", tRNS=words(0)), [255, 255]),
        (png(2, GREY, 4, b"\x1b"), [0, 85, 170, 255]),
        (png(2, GREY, 4, b"\x1b", tRNS=words(1)), [0, 255, 170, 255]),
        (png(4, GREY, 2, b"\x3f", tRNS=words(3)), [255, 255]),
        (png(8, GREY, 2, b"\x03\x0f", tRNS=words(3)), [255, 15]),
        (png(8, GREY_ALPHA, 2, b"\x00\x80\x00\xff"), [127, 0]),
        (png(16, COLOUR, 1, words(65535, 257, 32768)), [[255, 1, 128]]),
        (png(8, COLOUR, 2, bytes([1, 2, 3, 1, 2, 4])), [[1, 2, 3], [1, 2, 4]]),
        (png(8, COLOUR, 2, bytes([1, 2, 3, 1, 2, 4]), tRNS=words(1, 2, 3)), [[255] * 3, [1, 2, 4]]),
        (png(8, COLOUR_ALPHA, 2, b"\x0a\x14\x1e\0\x0a\x14\x1e\xff"), [[255] * 3, [10, 20, 30]]),
        (png(16, COLOUR_ALPHA, 1, words(9, 9, 9, 0)), [[255] * 3]),
        (png(2, PALETTE, 3, b"\x18", PLTE=COLOURS), [[255, 0, 0], [0, 255, 0], [0, 0, 255]]),
        (
            png(8, PALETTE, 3, b"\0\1\2", PLTE=COLOURS, tRNS=b"\0\x80"),
            [[255] * 3, [127, 255, 127], [0, 0, 255]],
        ),
        (png(1, PALETTE, 2, b"\x40", PLTE=COLOURS[:6], tRNS=b"\xff\0"), [[255, 0, 0], [255] * 3]),
    ],
)
def test_every_depth_and_transparency_of_png(file, pixels):
    """Transparent pixels are white, whatever colour is stored below; values are by hand."""
    expected = np.array([np.broadcast_to(pixel, 3) for pixel in pixels], np.uint8)
    np.testing.assert_array_equal(pictures.read_picture(file, 1, len(pixels))[0], expected)


def test_a_transparent_colour_that_is_not_kept_is_refused(folder):
    write(
        folder / "b.array_record", [(png(16, COLOUR, 1, words(1, 2, 3), tRNS=words(1, 2, 3)), "")]
    )
    source = pictures.open_pictures(f"array_record:{folder}", 1, 1)
    with pytest.raises(ValueError, match="record 3 .*16 bits a channel one colour is transparent"):
        source[3]


@pytest.mark.parametrize("kind", ["png", "webp", "avif", "gif"])
def test_hidden_colours_are_not_seen(kind):
    """Random colours under full transparency, around an opaque square."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 4), np.uint8)
    pixels[..., 3] = 0
    pixels[8:24, 8:24] = (10, 200, 90, 255)
    options = {"lossless": True, "exact": True, "quality": 100}
    picture = pictures.read_picture(encoded(Image.fromarray(pixels), kind, **options), 32, 32)
    expected = np.full((32, 32, 3), 255)
    expected[8:24, 8:24] = (10, 200, 90)
    if kind == "avif":  # Its colours are not exact, the hidden ones beside them least of all.
        expected[8:24, 8:24] = picture[8:24, 8:24]
    np.testing.assert_array_equal(picture, expected)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_modes_without_transparency_are_as_pillow_has_them(mode):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(pictures.fit(image, 6, 8), expected)


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA", "RGBa"])
def test_modes_with_transparency(mode):
    """An opaque grey and a transparent one, side by side."""
    alpha = Image.fromarray(np.array([[255, 0]], np.uint8))
    if mode == "PA":
        image = Image.new("P", (2, 1))
        image.putpalette([60] * 3)
        image.putalpha(alpha)
    else:
        image = Image.merge("RGBA", [*[Image.new("L", (2, 1), 60)] * 3, alpha]).convert(mode)
    assert image.mode == mode
    np.testing.assert_array_equal(pictures.fit(image, 1, 2), [[[60] * 3, [255] * 3]])


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_sixteen_bits_in_any_order(mode):
    order = ">u2" if mode.endswith("B") else "<u2"
    values = np.array([[0, 257, 32768, 65535]], order)
    image = Image.frombytes(mode, (4, 1), values.tobytes())
    np.testing.assert_array_equal(pictures.fit(image, 1, 4)[0, :, 0], [0, 1, 128, 255])


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_range_are_refused(mode):
    with pytest.raises(ValueError, match=f"its mode is {mode}, whose values have no range"):
        pictures.fit(Image.new(mode, (2, 2)), 2, 2)


@pytest.mark.parametrize("kind", ["eps", "pdf", "tiff", "ppm", "tga", "ico", "jpeg2000"])
def test_other_formats_are_not_opened(kind, monkeypatch):
    """EPS would start Ghostscript, where it is installed."""

    def run(*arguments, **options):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "check_call", run)
    with pytest.raises(ValueError, match="it is no file of PNG, JPEG, WEBP"):
        pictures.read_picture(encoded(stripes(24, 16), kind), 16, 24)


def claims(width, height):
    """A PNG of some bytes whose header says that it is larger."""
    whole = encoded(stripes(3, 3))
    header = b"IHDR" + struct.pack(">II", width, height) + whole[24:29]
    return whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]


# The second is what Pillow warns of, the third what it refuses itself.
@pytest.mark.parametrize(("width", "height"), [(8193, 8192), (10_000, 10_000), (14_000, 14_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pictures_that_are_too_large_are_not_decoded(folder, width, height, monkeypatch):
    def load(self):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    write(folder / "b.array_record", [(claims(width, height), "bomb")])
    source = pictures.open_pictures(f"array_record:{folder}", 8, 8)
    with pytest.raises(ValueError, match="record 3 .*'image' is not a picture .*pixels.*leave"):
        source[3]


def test_whatever_a_decoder_raises_names_the_record(folder):
    """What Pillow makes nothing of, neither do we; a broken AVIF is a RuntimeError there."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
    records = []
    for kind in ("png", "jpeg", "webp", "avif", "gif", "bmp"):
        whole = np.frombuffer(encoded(noise, kind), np.uint8)
        for cut in rng.integers(1, len(whole), 3):
            records.append((whole[:cut].tobytes(), kind))
        for _ in range(30):
            damaged = whole.copy()
            damaged[rng.integers(20, len(whole), 8)] = rng.integers(0, 256, 8)
            records.append((damaged.tobytes(), kind))
    write(folder / "b.array_record", records)
    source = pictures.open_pictures(f"array_record:{folder}", 8, 8)
    kinds = set()
    for index, (broken, _) in enumerate(records, start=3):
        try:
            Image.open(io.BytesIO(broken)).convert("RGB")
        except Exception as error:
            kinds.add(type(error))
            message = rf"record {index} \(the first is 0\): 'image' is not a picture \(.+\): leave"
            with pytest.raises(ValueError, match=message):
                source[index]
        else:
            assert source[index][0].shape == (8, 8, 3)
    assert {OSError, RuntimeError} <= kinds


def test_names_that_cannot_be_read(folder):
    with pytest.raises(ValueError, match="There are no pictures 'photos': use emoji, tfds:NAME"):
        pictures.open_pictures("photos", 8, 8)
    with pytest.raises(ValueError, match=r"the options \['caption'\] are unknown"):
        pictures.open_pictures(f"array_record:{folder}?caption=x", 8, 8)
