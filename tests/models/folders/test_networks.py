"""Names of networks and their weights, against diffusers and transformers."""

import jax
import numpy as np

from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.stable_diffusion.folder import (
    load_stable_diffusion,
    save_stable_diffusion,
)


def test_loads_old_attention_names(tiny, tmp_path):
    """The VAE's attention as it was named before diffusers 0.18, with a position_ids buffer."""
    model, params = tiny
    save_stable_diffusion(tmp_path, model, params, "float32")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    state = weights.read_safetensors(file)
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value")):
        state = {key.replace(f".{new}.", f".{old}."): value for key, value in state.items()}
    state = {key.replace(".to_out.0.", ".proj_attn."): value for key, value in state.items()}
    assert any(".proj_attn." in key for key in state)
    weights.write_safetensors(file, state)
    file = tmp_path / "text_encoder" / "model.safetensors"
    state = weights.read_safetensors(file)
    state["text_model.embeddings.position_ids"] = np.arange(12)[None]
    weights.write_safetensors(file, state)
    _, loaded = load_stable_diffusion(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.device_get(dict(params)))
