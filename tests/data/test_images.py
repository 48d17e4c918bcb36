import numpy as np
import pytest

from diffusionrl_jax.data import images


def make_source(count, size=8):
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
            "prompt": f"thing {n}".encode(),
        }
        for n in range(count)
    ]


class Encoder:
    """Stands for a VAE: means over 4 x 4 squares, channel first; remembers the batch shapes."""

    def __init__(self):
        self.shapes = []

    def __call__(self, pictures):
        assert pictures.dtype == np.float32
        assert 0.0 <= pictures.min()
        assert pictures.max() <= 1.0
        self.shapes.append(pictures.shape)
        n, h, w, c = pictures.shape
        squares = pictures.reshape(n, h // 4, 4, w // 4, 4, c)
        return (moment(axis=(2, 4)).transpose(0, 3, 1, 2) for moment in (squares.mean, squares.std))


def tokenize(prompts):
    return np.array([[int(prompt.split()[1]), 7] for prompt in prompts])


def make_dataset(count=10):
    return images.encode_pictures(make_source(count), Encoder(), tokenize, batch_size=4)


def test_every_picture_is_encoded_in_order_in_batches_of_one_shape():
    source, encode = make_source(10), Encoder()
    dataset = images.encode_pictures(source, encode, tokenize, batch_size=4)
    assert encode.shapes == [(4, 8, 8, 3)] * 3
    assert dataset.latent_mean.shape == dataset.latent_std.shape == (10, 3, 2, 2)
    assert dataset.input_ids.dtype == np.int32
    np.testing.assert_array_equal(dataset.input_ids[:, 0], np.arange(10))
    square = source[9]["image"][4:, :4, 1] / 255.0  # Row 1, column 0, green.
    np.testing.assert_allclose(dataset.latent_mean[9, 1, 1, 0], square.mean(), rtol=1e-6)
    np.testing.assert_allclose(dataset.latent_std[9, 1, 1, 0], square.std(), rtol=1e-5)


def test_pairs_are_taken_too():
    pairs = [(item["image"], item["prompt"].decode()) for item in make_source(10)]
    dataset = images.encode_pictures(pairs, Encoder(), tokenize, batch_size=4)
    np.testing.assert_array_equal(dataset.latent_mean, make_dataset().latent_mean)


def test_batches_pass_through_all_pictures_and_depend_on_arguments_alone():
    dataset = make_dataset()
    ids = np.concatenate([dataset.batch(s, 4, seed=1)["input_ids"][:, 0] for s in range(5)])
    assert sorted(ids[:10]) == sorted(ids[10:]) == list(range(10))
    assert list(ids[:10]) != list(ids[10:])
    late = make_dataset().batch(3, 4, seed=1)
    np.testing.assert_array_equal(late["input_ids"][:, 0], ids[12:16])
    np.testing.assert_array_equal(late["latent_mean"], dataset.latent_mean[ids[12:16]])
    np.testing.assert_array_equal(late["latent_std"], dataset.latent_std[ids[12:16]])
    assert list(dataset.batch(0, 10, seed=2)["input_ids"][:, 0]) != list(ids[:10])


def test_cache_is_used_only_for_the_same_model_and_pictures(tmp_path, capsys):
    path = str(tmp_path / "cache" / "latents.npz")
    builds = []

    def build():
        builds.append(1)
        return make_dataset()

    first = images.cached_latents(path, "a", build)
    again = images.cached_latents(path, "a", build)
    assert len(builds) == 1
    for field in images.FIELDS:
        np.testing.assert_array_equal(getattr(first, field), getattr(again, field))
        assert getattr(first, field).dtype == getattr(again, field).dtype
    assert capsys.readouterr().err == ""

    images.cached_latents(path, "b", build)
    assert len(builds) == 2
    assert "stale" in capsys.readouterr().err

    with open(path, "rb+") as file:
        file.truncate(700)
    images.cached_latents(path, "b", build)
    assert len(builds) == 3
    assert "damaged" in capsys.readouterr().err
    images.cached_latents(path, "b", build)
    assert len(builds) == 3
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["latents.npz"]


def test_nothing_is_unpickled(tmp_path):
    path = tmp_path / "latents.npz"
    evil = np.array([{"an": "object"}], dtype=object)
    np.savez(path, fingerprint="a", latent_mean=evil, latent_std=evil, input_ids=evil)
    with pytest.raises(ValueError, match="damaged.*remove it"):
        images.LatentDataset.load(str(path), "a")


def test_fingerprint_sees_every_change():
    params = {"a": np.arange(4.0), "b": {"c": np.zeros((2, 2), np.float32)}}
    prints = {
        images.fingerprint(params, "emoji"),
        images.fingerprint(params, "other"),
        images.fingerprint(params | {"a": np.arange(4.0) + 1e-9}, "emoji"),
        images.fingerprint(params | {"a": np.arange(4.0).reshape(2, 2)}, "emoji"),
        images.fingerprint(params | {"a": np.arange(4.0, dtype=np.float32)}, "emoji"),
        images.fingerprint(params | {"d": np.zeros(0)}, "emoji"),
    }
    assert len(prints) == 6
    assert images.fingerprint(dict(reversed(params.items())), "emoji") in prints


def test_wrong_pictures_are_named():
    encode = Encoder()
    with pytest.raises(ValueError, match="source is empty"):
        images.encode_pictures([], encode, tokenize)
    source = make_source(3)
    source[2]["image"] = source[2]["image"][:4]
    with pytest.raises(ValueError, match=r"Picture 2 has shape \(4, 8, 3\)"):
        images.encode_pictures(source, encode, tokenize)
    source[2]["image"] = np.zeros((8, 8, 3))
    with pytest.raises(ValueError, match="Picture 2 is float64"):
        images.encode_pictures(source, encode, tokenize)
    dataset = make_dataset()
    with pytest.raises(ValueError, match="do not belong"):
        images.LatentDataset(dataset.latent_mean, dataset.latent_std, dataset.input_ids[:3])
