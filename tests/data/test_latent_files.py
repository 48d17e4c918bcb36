"""Files of latents, written and read by safetensors' own library."""

import hashlib
import json

import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from diffusionrl_jax.data import latent_files

ABOUT = {"made_from": "2 model"}


@pytest.fixture
def fields():
    draw = np.random.default_rng(0).standard_normal
    ids = np.arange(6, dtype=np.int32).reshape(3, 2)
    return {"latent_mean": draw((3, 4, 2, 2)).astype(np.float32), "input_ids": ids}


@pytest.fixture
def path(fields, tmp_path):
    """A file of three pictures, the first of which is number 7 of its source."""
    stored = fields | {latent_files.DIGESTS: latent_files.digests(fields, ABOUT, 7)}
    file = epath.Path(tmp_path) / latent_files.file_name(1, 3)
    file.write_bytes(safetensors.numpy.save(stored, metadata=ABOUT))
    return file


def test_names_sort_as_their_numbers(tmp_path):
    paths = latent_files.file_paths(epath.Path(tmp_path), 12)
    assert paths == sorted(paths)
    assert paths[11].name == "latents-00011-of-00012.safetensors"
    assert latent_files.size(paths[0]) is None


def test_rows_are_those_of_the_arrays(path, fields):
    header = latent_files.open_header(path)
    assert dict(header.about) == ABOUT
    assert header.fields.keys() == fields.keys()
    assert latent_files.size(path) == len(path.read_bytes())
    with path.open("rb") as file:
        for name, array in fields.items():
            for row in range(3):
                found = latent_files.read_row(file, header.fields[name], row)
                assert found == array[row].tobytes()


def test_a_digest_is_hashlibs_of_the_picture_and_its_number(path, fields):
    header = latent_files.open_header(path)
    kinds = {"latent_mean": ["float32", [4, 2, 2]], "input_ids": ["int32", [2]]}
    for row in range(3):
        about = json.dumps([ABOUT, 7 + row, kinds], sort_keys=True).encode()
        content = fields["input_ids"][row].tobytes() + fields["latent_mean"][row].tobytes()
        expected = hashlib.sha256(about + content).digest()[: latent_files.DIGEST_BYTES]
        assert header.digests[row].tobytes() == expected
        digest = header.begin_digest(7 + row)
        digest.update(content)
        assert header.fits(row, digest) and not header.fits((row + 1) % 3, digest)


def test_a_file_that_was_changed_is_not_whole(path, fields):
    whole = lambda about=ABOUT: latent_files.are_whole([None, path], about, 7).tolist()
    assert whole() == [False, True]
    content = path.read_bytes()
    place = content.index(fields["latent_mean"].tobytes())
    for changed in (content[:-1], content[:place] + b"?" + content[place + 1 :], b"", b"x" * 99):
        path.write_bytes(changed)
        assert whole() == [False, False]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="holds latents of another model or other pictures"):
        whole({"made_from": "2 other"})


def test_an_index_that_was_changed_is_refused(tmp_path):
    index = {"model": "vae", "pictures": 3, "version": latent_files.VERSION}
    path = epath.Path(tmp_path) / latent_files.INDEX
    path.write_text(json.dumps(index | {"digest": latent_files.index_digest(index)}))
    assert latent_files.read_index(path) == index
    for text in (path.read_text().replace("vae", "vaf"), json.dumps(index), "[]", "{", ""):
        path.write_text(text)
        with pytest.raises(ValueError, match="index.json is not what .* wrote: remove it"):
            latent_files.read_index(path)
