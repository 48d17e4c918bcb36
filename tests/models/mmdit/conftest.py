"""Folders of tiny transformers, as PyTorch's diffusers writes them."""

import pytest

from tests import tiny_transformers


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory):
    """A function that returns the folder of a tiny transformer, with T5 or without."""
    made = {}

    def make(t5=True):
        if t5 not in made:
            folder = tmp_path_factory.mktemp("sd3")
            pipeline = tiny_transformers.make_sd3(folder / "tokenizers", t5=t5)
            pipeline.save_pretrained(folder / "model")
            made[t5] = folder / "model"
        return made[t5]

    return make
