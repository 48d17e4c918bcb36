import io

import numpy as np
import pytest
from PIL import Image

from diffusionrl_jax.evaluation import records
from diffusionrl_jax.evaluation.records import Record
from diffusionrl_jax.mistakes import UserError


def record(step=0, name="pairs"):
    picture = records.encode(np.full((8, 8, 3), step, np.uint8))
    return Record(
        step,
        {name: ["a", "a", "b <i>"]},
        {name: {"size": np.array([0.1, np.nan, -np.inf], np.float32)}},
        {name: {"a": 0.25}},
        {name: {0: picture, 2: picture}},
        {name: "some", f"{name}/size": "others"},
    )


@pytest.mark.parametrize("name", ["pairs", "a/b", "../ü %2F"])
def test_what_is_written_is_read(name, tmp_path):
    written = record(3, name)
    records.write_record(str(tmp_path), written)
    read = records.read_record(str(tmp_path), 3)
    assert (read.step, read.prompts) == (3, written.prompts)
    assert (read.distances, read.pictures) == (written.distances, written.pictures)
    assert read.settings == written.settings
    assert read.scores[name]["size"].dtype == np.float32
    np.testing.assert_array_equal(read.scores[name]["size"], np.float32([0.1, np.nan, np.nan]))


def test_settings_name_what_scores_depend_on(make_config):
    """Of the set and scorer that are changed, and of no others."""
    config = make_config().evaluation
    before = records.settings_of(config, "pixels")
    assert before.keys() == {"pairs", "people", "pairs/size", "people/size"}
    config.sets.people.images = 32
    after = records.settings_of(config, "pixels")
    assert {key for key in before if before[key] != after[key]} == {"people", "people/size"}
    config.scorers.size.options["quality"] = 50
    assert records.settings_of(config, "pixels")["people"] == after["people"]
    assert records.settings_of(config, "pixels")["people/size"] != after["people/size"]
    clip = records.settings_of(config, "CLIP")
    assert clip["pairs"] != before["pairs"]
    config.seed += 1
    assert not set(records.settings_of(config, "CLIP").items()) & set(clip.items())


def test_later_evaluations_are_removed(tmp_path):
    assert records.recorded_steps(str(tmp_path)) == []
    for step in (0, 8, 16):
        records.write_record(str(tmp_path), record(step))
    (tmp_path / records.FOLDER / "notes.zip").write_bytes(b"")
    records.remove_records(str(tmp_path), 9)
    assert records.recorded_steps(str(tmp_path)) == [0, 8]


def test_a_damaged_file_is_named(tmp_path):
    records.write_record(str(tmp_path), record())
    path = tmp_path / records.FOLDER / "00000000.zip"
    whole = path.read_bytes()
    for content in (whole[:50], b"", whole.replace(b"pairs/2", b"pears/2")):
        path.write_bytes(content)
        with pytest.raises(UserError, match="00000000.zip is damaged"):
            records.read_record(str(tmp_path), 0)


def test_whatever_bit_is_wrong_is_told(tmp_path):
    records.write_record(str(tmp_path), record())
    path = tmp_path / records.FOLDER / "00000000.zip"
    whole, damaged = path.read_bytes(), 0
    for place in np.random.default_rng(0).integers(8 * len(whole), size=300).tolist():
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            records.read_record(str(tmp_path), 0)
        except UserError:
            damaged += 1
    assert damaged > 150


def test_a_full_disk_ends_nothing(tmp_path, caplog):
    (tmp_path / records.FOLDER).write_text("a file where a folder should be")
    records.write_record(str(tmp_path), record())
    assert "cannot be written" in caplog.text


def test_small_pictures_are_kept_as_they_are():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    small = records.shrink(image[None])[0]
    np.testing.assert_array_equal(Image.open(io.BytesIO(records.encode(small))), image)


def test_large_pictures_are_made_smaller():
    across = np.linspace(0, 1, 512, dtype=np.float32)[None, None, :, None]
    images = np.broadcast_to(across, (2, 1024, 512, 3))
    small = records.shrink(images)
    assert small.shape == (2, 256, 128, 3)
    picture = Image.open(io.BytesIO(records.encode(small[0])))
    assert picture.format == "JPEG" and picture.size == (128, 256)
    # Means of four neighbours; a step of JPEG's quantisation and rounding besides.
    expected = across.reshape(128, 4).mean(1) * 255
    np.testing.assert_allclose(np.asarray(picture)[100, :, 0], expected, atol=4)


def test_which_pictures_are_kept():
    np.testing.assert_array_equal(records.kept_pictures(5, [0, 2]), np.arange(5))
    kept = records.kept_pictures(2048, [0, 1, 3])
    assert {0, 1, 3} <= set(kept.tolist())
    assert records.MOST_PICTURES <= len(kept) <= records.MOST_PICTURES + 3


def test_means_by_prompt_leave_out_what_is_not_finite():
    values = np.array([1.0, np.nan, 3.0, np.nan])
    assert records.mean_by_prompt(["a", "a", "a", "b"], values) == {"a": 2.0}
