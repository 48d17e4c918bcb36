"""OWL-ViT's towers, from the configs of published folders."""

import json

import numpy as np
import pytest
import torch
import transformers

from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.towers import owl_vit
from diffusionrl_jax.rewards import detection


@pytest.mark.parametrize("model_type", owl_vit.CONFIGS)
def test_a_config_without_sizes_has_transformers_own(model_type):
    """Every name and shape of the published size, without allocating them."""
    model = owl_vit.build({"model_type": model_type, "vision_config": {}, "text_config": {}})
    classes = {
        "owlvit": transformers.OwlViTForObjectDetection,
        "owlv2": transformers.Owlv2ForObjectDetection,
    }
    with torch.device("meta"):
        oracle = classes[model_type](owl_vit.CONFIGS[model_type]())
    state = {
        name: np.broadcast_to(np.float32(0), tensor.shape)
        for name, tensor in oracle.state_dict().items()
    }
    matched = weights.match(
        state,
        owl_vit.template(model),
        rename=owl_vit.RENAMES[model_type],
        ignore=owl_vit.UNUSED,
    )
    assert len(matched) > 390
    for tower in ("vision", "text"):
        ours, theirs = getattr(model, tower).config, getattr(oracle.config, f"{tower}_config")
        for name in ("num_attention_heads", "layer_norm_eps", "hidden_act", "patch_size"):
            assert getattr(ours, name, None) == getattr(theirs, name, None), name


def test_what_a_folder_lacks_is_named(make_original):
    _, folder = make_original("owl_vit")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"objects": []}))
    with pytest.raises(ValueError, match="lists no objects"):
        detection.Detection.load(str(folder))
    with pytest.raises(ValueError, match="'detr'; known are owlvit and owlv2"):
        owl_vit.build(config | {"model_type": "detr"})
    # The other detector's keys.
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "owlv2"}))
    with pytest.raises(ValueError, match=r"owlv2\.text_model"):
        detection.Detection.load(str(folder))
