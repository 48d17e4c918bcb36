"""BLIP's towers: the names and layouts of their tensors."""

import numpy as np

from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.towers import blip
from diffusionrl_jax.rewards import image_reward


def test_names_and_layouts_round_trip(make_original):
    _, folder = make_original("image_reward")
    _, params = image_reward.ImageReward.load(str(folder))
    state = blip.PROJECTIONS.join(weights.to_pytorch(params, rename=blip.rename))
    stored = weights.read_safetensors(folder / "model.safetensors")
    unused = {"blip.text_encoder.embeddings.position_ids", "blip.vision_proj.weight"}
    assert set(state) == set(stored) - unused
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensor, stored[name], err_msg=name)
