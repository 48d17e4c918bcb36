"""CLIP's towers: the names of their tensors, and their published sizes."""

import jax
import numpy as np
import pytest
import safetensors.torch

from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.towers import clip
from diffusionrl_jax.rewards import REWARDS


def test_open_clip_names_and_layouts_round_trip(make_original):
    original, folder = make_original("hps_v2")
    _, params = REWARDS["hps_v2"].load(str(folder))
    state = clip.join_open_clip(weights.to_pytorch(params, rename=clip.open_clip_rename))
    expected = original.state()
    assert set(state) == set(expected)
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensor, expected[name].detach().numpy(), err_msg=name)
    weights.write_safetensors(folder / "written.safetensors", state)
    written = safetensors.torch.load_file(folder / "written.safetensors")
    assert {name: value.shape for name, value in written.items()} == {
        name: value.shape for name, value in expected.items()
    }


@pytest.mark.parametrize(("reward", "million"), [("clip_score", 427.6), ("hps_v2", 986.1)])
def test_published_sizes(reward, million, parity):
    """Parameters of OpenAI's ViT-L/14 and open_clip's ViT-H-14, from open_clip's model profile."""
    model = clip.build(parity.originals.ORIGINALS[reward][1])
    leaves = jax.tree.leaves(clip.template(model))
    assert round(sum(leaf.size for leaf in leaves) / 1e6, 1) == million
