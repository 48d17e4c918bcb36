import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image

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


def test_names_that_cannot_be_read(folder):
    with pytest.raises(ValueError, match="There are no pictures 'photos': use emoji, tfds:NAME"):
        pictures.open_pictures("photos", 8, 8)
    with pytest.raises(ValueError, match=r"the options \['caption'\] are unknown"):
        pictures.open_pictures(f"array_record:{folder}?caption=x", 8, 8)
