import concurrent.futures
import json
import shlex
import threading

import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from safetensors import safe_open

from diffusionrl_jax.data import latent_files, latents
from tests.data.test_files import NAMES, full_disk


class Pictures(list):
    """Of random pixels, texted "thing 0" and so on; remembers which were read."""

    fingerprint = "random"

    def __init__(self, count, size=8):
        self.read = []
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count)]
        super().__init__((image, f"thing {n}") for n, image in enumerate(images))

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


class Encoder:
    """Stands for a VAE: means over 4 x 4 squares, channel first; remembers the batch shapes."""

    def __init__(self, fails_after=10**9):
        self.shapes, self.fails_after = [], fails_after

    def __call__(self, pictures, ids):
        if len(self.shapes) == self.fails_after:
            raise KeyboardInterrupt
        assert pictures.dtype == np.float32
        assert 0.0 <= pictures.min()
        assert pictures.max() <= 1.0
        self.shapes.append(pictures.shape)
        n, h, w, c = pictures.shape
        squares = pictures.reshape(n, h // 4, 4, w // 4, 4, c)
        mean, std = (moment(axis=(2, 4)) for moment in (squares.mean, squares.std))
        moments = {"latent_mean": mean, "latent_std": std}
        moments = {name: values.transpose(0, 3, 1, 2) for name, values in moments.items()}
        return {**moments, "input_ids": ids}


def tokenize(prompts):
    return np.array([[int(prompt.split()[1]), 7] for prompt in prompts])


def write(folder, source=None, encode=None, model="vae", **options):
    """Ten pictures in files of 4, 4 and 2, three at a time."""
    encode = encode or Encoder()
    source = source or Pictures(10)
    latents.write_latents(source, encode, tokenize, folder, model, 3, 4, **options)
    return encode


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "latents")
    return tmp_path / "latents"


def test_every_picture_is_encoded_in_order_in_batches_of_one_shape(tmp_path):
    assert write(tmp_path).shapes == [(3, 8, 8, 3)] * 5
    dataset = latents.LatentDataset(tmp_path)
    assert len(dataset) == 10
    assert dataset.model == "vae"
    arrays = dataset.read(range(10))
    assert arrays["latent_mean"].shape == arrays["latent_std"].shape == (10, 3, 2, 2)
    assert {name: values.dtype for name, values in arrays.items()} == {
        "latent_mean": np.float32,
        "latent_std": np.float32,
        "input_ids": np.int32,
    }
    np.testing.assert_array_equal(arrays["input_ids"], [[n, 7] for n in range(10)])
    square = Pictures(10)[9][0][4:, :4, 1] / 255.0  # Row 1, column 0, green.
    np.testing.assert_allclose(arrays["latent_mean"][9, 1, 1, 0], square.mean(), rtol=1e-6)
    np.testing.assert_allclose(arrays["latent_std"][9, 1, 1, 0], square.std(), rtol=1e-5)


def test_files_are_safetensors(folder):
    with safe_open(folder / "latents-00001-of-00003.safetensors", "np") as file:
        expected = latents.LatentDataset(folder).read([4, 5, 6, 7])
        for field, values in expected.items():
            np.testing.assert_array_equal(file.get_tensor(field), values)


def test_batches_pass_through_all_pictures_and_depend_on_arguments_alone(folder):
    dataset = latents.LatentDataset(folder)
    ids = np.concatenate([dataset.batch(s, 4, seed=1)["input_ids"][:, 0] for s in range(5)])
    assert sorted(ids[:10]) == sorted(ids[10:]) == list(range(10))
    assert list(ids[:10]) != list(ids[10:])
    late = latents.LatentDataset(folder).batch(3, 4, seed=1)
    for field, values in dataset.read(ids[12:16]).items():
        np.testing.assert_array_equal(late[field], values)
    assert list(dataset.batch(0, 10, seed=2)["input_ids"][:, 0]) != list(ids[:10])


def test_hosts_read_their_own_rows(folder):
    dataset = latents.LatentDataset(folder)
    whole = dataset.batch(2, 6, seed=0)
    parts = [dataset.batch(2, 6, 0, rows=slice(first, first + 2)) for first in (0, 2, 4)]
    for field, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[field] for part in parts]), values)


def test_hosts_read_different_pictures(folder, tmp_path):
    """Two hosts, here threads, hold rows 0 and 1, and row 2, and tell each other what they have."""
    rows, barrier, held = ((0, 1), (2,)), threading.Barrier(2), {}

    class Host(Encoder):
        def __init__(self, own):
            super().__init__()
            self.own = own

        def __call__(self, *batch):
            held[self.own] = batch
            barrier.wait(60)
            ours, theirs = held[self.own], held[rows[1 - rows.index(self.own)]]
            whole = [np.array(values) for values in theirs]
            for values, own in zip(whole, ours, strict=True):
                values[list(self.own)] = own[list(self.own)]
            barrier.wait(60)
            return super().__call__(*whole)

    sources = Pictures(10), Pictures(10)
    with concurrent.futures.ThreadPoolExecutor(2) as hosts:
        runs = [
            hosts.submit(write, tmp_path / str(n), sources[n], Host(own), rows=own)
            for n, own in enumerate(rows)
        ]
        for run in runs:
            run.result()
    # Files of 4, 4 and 2 in batches of 3 and 1; all look at the first, for its size.
    assert [set(source.read) - {0} for source in sources] == [{1, 3, 4, 5, 7, 8, 9}, {2, 6}]
    for path in folder.iterdir():
        for n in range(2):
            assert (tmp_path / str(n) / path.name).read_bytes() == path.read_bytes()


def test_files_are_looked_at_together(folder, monkeypatch):
    """Of ten thousand in a bucket, one after the other takes many minutes."""
    kind = type(epath.Path(folder))
    stat, all_three = kind.stat, threading.Barrier(3)

    def stat_together(path):
        if path.suffix == ".safetensors":
            all_three.wait(20)
        return stat(path)

    monkeypatch.setattr(kind, "stat", stat_together)
    assert len(latents.LatentDataset(folder)) == 10
    assert write(folder).shapes == []


def test_latents_in_a_bucket(folder, bucket):
    with pytest.raises(KeyboardInterrupt):
        write(f"{bucket}/latents", encode=Encoder(fails_after=3))
    assert len(write(f"{bucket}/latents").shapes) == 3
    expected = latents.LatentDataset(folder).batch(1, 8, seed=0)
    for field, values in latents.LatentDataset(f"{bucket}/latents").batch(1, 8, seed=0).items():
        np.testing.assert_array_equal(values, expected[field])


def test_interrupted_encoding_goes_on_where_it_was(folder, tmp_path):
    again = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        write(again, encode=Encoder(fails_after=3))
    with pytest.raises(
        FileNotFoundError, match=r"no complete latents: \(re\)start .*cache_latents"
    ):
        latents.LatentDataset(again)
    (again / "latents-00001-of-00003.safetensors.1.partial").touch()  # Of one that was killed.
    assert len(write(again).shapes) == 3  # The first of three files is not encoded again.
    assert write(again).shapes == []
    for path in folder.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()
    assert len(list(again.iterdir())) == 4


def test_damaged_files_are_an_error_and_mended_by_the_command(folder):
    path = folder / "latents-00001-of-00003.safetensors"
    content = path.read_bytes()
    for broken in (content[:-1], b"", content[:5]):
        path.write_bytes(broken)
        words = f"latents-00001-of-00003.*has {len(broken)} bytes, not {len(content)}: run"
        with pytest.raises(ValueError, match=words):
            latents.LatentDataset(folder)
        assert len(write(folder).shapes) == 2
        assert path.read_bytes() == content
    path.unlink()
    with pytest.raises(ValueError, match="the file is missing"):
        latents.LatentDataset(folder)
    (folder / "index.json").write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(ValueError, match="index.json is not what python -m"):
        latents.LatentDataset(folder)


def flipped(content, place):
    """The same bytes, one bit of which is another."""
    return content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]


def read_all(folder):
    dataset = latents.LatentDataset(folder)
    return dataset.model, dataset.read(range(10))


def assert_same(found, expected):
    assert found[0] == expected[0]
    for field, values in expected[1].items():
        np.testing.assert_array_equal(found[1][field], values)


def test_a_flipped_bit_is_never_read_and_mended_by_the_command(folder, caplog):
    """A bit of every fourth byte of a file and of the index; then of each file at once."""
    contents = {path: path.read_bytes() for path in folder.iterdir()}
    written = read_all(folder)
    last, index = folder / "latents-00002-of-00003.safetensors", folder / "index.json"
    for path in (last, index):
        for place in range(0, len(contents[path]), 4):
            path.write_bytes(flipped(contents[path], place))
            with pytest.raises(ValueError, match=f"{path.name}.*(cache_latents|start that again)"):
                read_all(folder)
            path.write_bytes(contents[path])
    for path in contents:
        path.write_bytes(flipped(contents[path], len(contents[path]) // 2))
    caplog.clear()
    assert len(write(folder).shapes) == 5
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    assert "3 files in" in caplog.text
    assert {path: path.read_bytes() for path in folder.iterdir()} == contents
    assert_same(read_all(folder), written)


def test_the_metadata_of_a_damaged_file_is_not_that_of_other_latents(folder):
    path = folder / "latents-00000-of-00003.safetensors"
    content = path.read_bytes()
    path.write_bytes(flipped(content, content.index(b"made_from") + len(b'made_from":"')))
    write(folder)
    assert path.read_bytes() == content


def test_a_bit_that_flips_after_opening_and_files_that_change_places(folder):
    dataset = latents.LatentDataset(folder)
    first, second = (folder / f"latents-0000{n}-of-00003.safetensors" for n in range(2))
    content = first.read_bytes()
    with safe_open(first, "np") as file:
        mean = file.get_tensor("latent_mean")
    dataset.read([0, 1, 2])
    first.write_bytes(flipped(content, content.index(mean[1].tobytes()) + 5))
    dataset.read([0, 2, 3, 5])
    with pytest.raises(ValueError, match="latents-00000.*picture 1 is not what was written"):
        dataset.read([0, 1])
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    for picture in (1, 6):
        with pytest.raises(ValueError, match=f"picture {picture} is not what was written"):
            latents.LatentDataset(folder).read([picture])


@pytest.mark.parametrize("has_digests", [True, False])
def test_latents_of_an_earlier_version(has_digests, folder, caplog):
    """As they were written before: without a version, and at first without digests."""
    written = read_all(folder)
    index = json.loads((folder / "index.json").read_text())
    del index["version"], index["digest"]
    for number, path in enumerate(latent_files.file_paths(epath.Path(folder), 3)):
        with safe_open(path, "np") as file:
            fields = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = {"made_from": file.metadata()["made_from"].removeprefix("2 ")}
        del fields["digest"]
        if has_digests:
            fields["digest"] = latent_files.digests(fields, about, 4 * number)
        path.write_bytes(safetensors.numpy.save(fields, metadata=about))
        index["sizes"][number] = path.stat().length
        index["headers"][number] = has_digests and latent_files.open_header(path).digest
    if has_digests:
        index["digest"] = latent_files.index_digest(index)
    else:
        del index["headers"]
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index.json: .* of version 1, .*cache_latents again"):
        latents.LatentDataset(folder)
    assert len(write(folder).shapes) == 5
    assert "3 files in" in caplog.text and "earlier version" in caplog.text
    assert_same(read_all(folder), written)


def test_a_full_disk(folder, tmp_path):
    """What is there stays, and the same command goes on."""
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    other = tmp_path / "other"
    with (
        full_disk(sizes["latents-00000-of-00003.safetensors"] - 1),
        pytest.raises(OSError, match="Cannot write .*latents-00000-of-00003.*the same command"),
    ):
        write(other)
    assert list(other.iterdir()) == []
    with full_disk(sizes["latents-00000-of-00003.safetensors"]):
        assert len(write(other).shapes) == 5
    assert_same(read_all(other), read_all(folder))


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_folders_with_any_name(name, folder, tmp_path):
    other = tmp_path / name
    write(other)
    (other / "latents-00001-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match="is missing") as error:
        latents.LatentDataset(other)
    command = str(error.value).partition("run ")[2].partition(" again")[0]
    assert shlex.split(command)[-1] == f"--output={other}"
    assert len(write(other).shapes) == 2
    assert_same(read_all(other), read_all(folder))


def test_other_latents_are_not_mixed(folder):
    other = Pictures(10)
    other.fingerprint = "other"
    for changes in ({"source": other}, {"model": "another"}, {"source": Pictures(13)}):
        with pytest.raises(ValueError, match="another model or other pictures"):
            write(folder, **changes)
    assert len(latents.LatentDataset(folder)) == 10


def test_fingerprint_sees_every_change():
    params = {"a": np.arange(4.0), "b": {"c": np.zeros((2, 2), np.float32)}}
    prints = {
        latents.fingerprint(params, "emoji"),
        latents.fingerprint(params, "other"),
        latents.fingerprint(params | {"a": np.arange(4.0) + 1e-9}, "emoji"),
        latents.fingerprint(params | {"a": np.arange(4.0).reshape(2, 2)}, "emoji"),
        latents.fingerprint(params | {"a": np.arange(4.0, dtype=np.float32)}, "emoji"),
        latents.fingerprint(params | {"d": np.zeros(0)}, "emoji"),
    }
    assert len(prints) == 6
    assert latents.fingerprint(dict(reversed(params.items())), "emoji") in prints


def test_wrong_pictures_are_named(tmp_path):
    empty = Pictures(0)
    with pytest.raises(ValueError, match="source is empty"):
        latents.write_latents(empty, Encoder(), tokenize, tmp_path, "vae")
    source = Pictures(3)
    source[2] = source[2][0][:4], "thing 2"
    with pytest.raises(ValueError, match=r"Picture 2 is uint8 of shape \(4, 8, 3\)"):
        write(tmp_path, source)
    source[2] = np.zeros((8, 8, 3)), "thing 2"
    with pytest.raises(ValueError, match="Picture 2 is float64"):
        write(tmp_path, source)
    nan = lambda images, ids: {"latent_mean": np.full((len(images), 1, 1, 1), np.nan)}
    with pytest.raises(ValueError, match="The latent_mean of pictures 0 to 3 is not finite"):
        write(tmp_path, encode=nan)
