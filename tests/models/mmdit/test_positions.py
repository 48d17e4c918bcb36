"""Stable Diffusion 3's table of places against PyTorch diffusers'."""

import numpy as np
import pytest

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.mmdit.positions import TABLE, middle, position_table
from tests.models.mmdit.test_joint import CONFIG, torch_transformer


def test_position_table_is_pytorchs():
    config = CONFIG | {"sample_size": 8}
    theirs = torch_transformer(config).state_dict()[TABLE].numpy()
    assert np.abs(position_table(12, 4, 64) - theirs).max() <= 2e-7  # An ulp of 1.


@pytest.mark.parametrize("size", [(8, 20), (16, 16), (24, 2)])
def test_a_picture_has_the_middle_of_the_table(size):
    patches = torch_transformer(CONFIG).pos_embed
    expected = patches.cropped_pos_embed(*size)[0].numpy()
    table = patches.pos_embed.numpy()
    rows, columns = (side // CONFIG["patch_size"] for side in size)
    np.testing.assert_array_equal(middle(table, 12, rows, columns), expected)


def test_a_picture_beyond_the_table_is_refused():
    with pytest.raises(UserError, match="2 x 13 patches is larger .* 12 x 12: choose smaller"):
        middle(np.zeros((1, 144, 4)), 12, 2, 13)
