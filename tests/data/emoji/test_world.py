import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from diffusionrl_jax.data.emoji import pictures, world
from tests.data.test_files import NAMES, full_disk


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(world, "SPLITS", {"train": 12, "test": 4})


def test_dataset_is_built_once_and_read_at_random(small, tmp_path):
    source = world.load("train", str(tmp_path))
    assert len(source) == 12
    drawn = [pictures.random_example(np.random.default_rng((0, n))) for n in range(12)]
    expected = {(example.prompt, example.image.tobytes()) for example in drawn}
    read = [source[index] for index in (11, *range(11))]
    assert {(item["prompt"].decode(), item["image"].tobytes()) for item in read} == expected
    assert {item["kind"] for item in read} <= {0, 1, 2}
    times = lambda: {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    built = times()
    assert len(world.load("test", str(tmp_path))) == 4
    assert times() == built


def test_splits_share_no_picture(small, tmp_path):
    train, test = (world.load(split, str(tmp_path)) for split in ("train", "test"))
    images = lambda source: {source[index]["image"].tobytes() for index in range(len(source))}
    assert not images(train) & images(test)


def test_dataset_has_the_metadata_of_any_tfds_dataset(small, tmp_path):
    world.load("train", str(tmp_path))
    info = tfds.builder_from_directory(str(next(tmp_path.glob("emoji_world/*")))).info
    assert info.splits["train"].num_examples == 12
    assert info.features["image"].shape == (32, 32, 3)
    assert info.features["kind"].names == list(pictures.KIND_FREQUENCIES)


def test_png_is_lossless(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    path = tmp_path / "picture.png"
    path.write_bytes(world.encode_png(image))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), image)


def test_tensorflow_is_not_imported(tmp_path):
    program = f"""
        import sys
        from diffusionrl_jax.data.emoji import world
        world.SPLITS = {{"train": 2}}
        print(world.load("train", {str(tmp_path)!r})[1]["image"].shape)
        print("tensorflow" in sys.modules)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    assert result.stdout.split("\n")[-3:] == ["(32, 32, 3)", "False", ""]


def test_a_damaged_dataset_is_made_anew(small, tmp_path, caplog):
    expected = world.load("train", str(tmp_path))[3]["prompt"]
    (version,) = tmp_path.glob("emoji_world/*")
    contents = {path: path.read_bytes() for path in version.iterdir()}
    assert not caplog.records
    for path, content in contents.items():
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
        for damage in (b"", content[:9], flipped, None):
            path.unlink()
            if damage is not None:
                path.write_bytes(damage)
            caplog.clear()
            assert world.load("train", str(tmp_path))[3]["prompt"] == expected
            assert [record.levelname for record in caplog.records] == ["WARNING"]
            assert "is not what was written there, and is made anew" in caplog.text
            assert set(version.iterdir()) == set(contents)
    assert [path.name for path in tmp_path.iterdir()] == ["emoji_world"]


@pytest.mark.parametrize("free", [100, 5000, 15_000])
def test_a_full_disk(free, small, tmp_path):
    with (
        full_disk(free),
        pytest.raises(OSError, match="Cannot write .*emoji_world.*the same command"),
    ):
        world.load("train", str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert len(world.load("train", str(tmp_path))) == 12


@pytest.mark.parametrize("name", [name for name in NAMES if name != "caf\udce9"], ids=ascii)
def test_folders_with_any_name(name, monkeypatch, tmp_path):
    monkeypatch.setattr(world, "SPLITS", {"train": 1})
    for _ in range(2):
        assert len(world.load("train", str(tmp_path / name))) == 1
