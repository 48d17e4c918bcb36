"""Folders of tiny transformers, as PyTorch's diffusers writes them."""

import pytest

from tests import tiny_transformers


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory):
    """A function that returns a tiny transformer's folder: Stable Diffusion 3, or FLUX."""
    made = {}

    def make(t5=True, flux=False):
        if (t5, flux) not in made:
            folder = tmp_path_factory.mktemp("flux" if flux else "sd3")
            tokenizers = folder / "tokenizers"
            if flux:
                pipeline = tiny_transformers.make_flux(tokenizers)
            else:
                pipeline = tiny_transformers.make_sd3(tokenizers, t5=t5)
            pipeline.save_pretrained(folder / "model")
            made[t5, flux] = folder / "model"
        return made[t5, flux]

    return make
