"""Pairs of pictures in Pick-a-Pic's columns, written by Pillow and pyarrow."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffusionrl_jax.data.pairs import ChosenPictures

LABELS = [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0), (1.0, 0.0), (None, 1.0), (0.0, 1.0)]


def png(shade):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(file, "PNG")
    return file.getvalue()


def columns(rows, **changes):
    """Of row i, the pictures' shades are 10 i and 10 i + 1."""
    return {
        "caption": [f"prompt {row}" for row in rows],
        "jpg_0": [png(10 * row) for row in rows],
        "jpg_1": [png(10 * row + 1) for row in rows],
        "label_0": [LABELS[row][0] for row in rows],
        "label_1": [LABELS[row][1] for row in rows],
        "are_different": [True for _ in rows],
    } | changes


@pytest.fixture
def folder(tmp_path):
    """Two files of three rows, the first in two row groups, beside something else."""
    pq.write_table(pa.table(columns([0, 1, 2])), tmp_path / "train-0.parquet", row_group_size=2)
    pq.write_table(pa.table(columns([3, 4, 5])), tmp_path / "train-1.parquet")
    (tmp_path / "README.md").write_text("Pictures.")
    return tmp_path


def test_the_chosen_picture_comes_first(folder):
    """And pairs of which none was chosen, or a label is missing, do not come."""
    found = ChosenPictures(str(folder), 8, 8, "pairs")
    assert len(found) == 8
    shades = [int(picture[0, 0, 0]) for picture, _ in found]
    assert shades == [0, 1, 21, 20, 30, 31, 51, 50]
    assert [text for _, text in found] == [f"prompt {row}" for row in (0, 0, 2, 2, 3, 3, 5, 5)]
    assert found[3][0].shape == (8, 8, 3) and found[3][0].dtype == np.uint8
    one = ChosenPictures(str(folder / "train-1.parquet"), 8, 8, "pairs")
    assert len(one) == 4 and one.fingerprint != found.fingerprint
    assert found.fingerprint == ChosenPictures(str(folder), 8, 8, "pairs").fingerprint
    assert found.fingerprint != ChosenPictures(str(folder), 16, 8, "pairs").fingerprint


def test_the_fingerprint_knows_pictures_and_captions(tmp_path):
    """Also where the file is as large as before, with the same labels and row groups."""
    rows, path = [0, 2, 3], tmp_path / "a.parquet"
    first = columns(rows)
    exchanged = columns(rows, jpg_0=first["jpg_1"], jpg_1=first["jpg_0"])
    reversed_captions = columns(rows, caption=first["caption"][::-1])
    found, sizes = [], []
    for content in (first, exchanged, reversed_captions, first):
        # Without statistics and dictionaries, which depend on the order too.
        pq.write_table(pa.table(content), path, use_dictionary=False, compression="none")
        sizes.append(path.stat().st_size)
        found.append(ChosenPictures(str(path), 8, 8, "pairs").fingerprint)
    assert len(set(sizes)) == 1
    assert found[0] == found[-1] and len(set(found)) == 3


def test_files_as_hugging_face_keeps_them(tmp_path):
    pictures = [{"bytes": png(row), "path": "x.png"} for row in (7, 8)]
    table = pa.table(columns([0, 3], jpg_0=pictures))
    pq.write_table(table, tmp_path / "a.parquet")
    found = ChosenPictures(str(tmp_path / "a.parquet"), 8, 8, "pairs")
    assert [int(found[index][0][0, 0, 0]) for index in range(4)] == [7, 1, 8, 31]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"jpg_1": [b"no picture"]}, "row 0 .*'jpg_1' is not a picture"),
        ({"jpg_0": [None]}, "'caption' or 'jpg_0' is null: leave the row out"),
        ({"caption": [b"\xff"]}, "row 0"),
    ],
)
def test_a_broken_row_is_named(tmp_path, changes, message):
    pq.write_table(pa.table(columns([0], **changes)), tmp_path / "a.parquet")
    found = ChosenPictures(str(tmp_path / "a.parquet"), 8, 8, "pairs")
    with pytest.raises(ValueError, match=message):
        list(found)


def test_refuses_what_holds_no_pairs(tmp_path):
    open_pairs = lambda name: ChosenPictures(str(tmp_path / name), 8, 8, "--pairs")
    with pytest.raises(FileNotFoundError):
        open_pairs("none.parquet")
    with pytest.raises(ValueError, match="holds no .*parquet"):
        open_pairs(".")
    pq.write_table(pa.table(columns([1])), tmp_path / "ties.parquet")
    with pytest.raises(ValueError, match="has no pair of which one was chosen"):
        open_pairs("ties.parquet")
    lacking = columns([0])
    del lacking["label_1"]
    pq.write_table(pa.table(lacking), tmp_path / "lacking.parquet")
    with pytest.raises(ValueError, match="no column 'label_1'"):
        open_pairs("lacking.parquet")
    whole = (tmp_path / "lacking.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="is not a whole parquet file"):
        open_pairs("cut.parquet")
