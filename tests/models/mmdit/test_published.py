"""The sizes of published models are those of PyTorch's networks of the same configs."""

import jax.numpy as jnp
import pytest
import torch
from diffusers import AutoencoderKL
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from diffusionrl_jax.models.families import model_shapes
from diffusionrl_jax.models.mmdit import published
from diffusionrl_jax.models.parameters import count
from tests.models.mmdit.test_description import FLUX, MEDIUM, numel


@pytest.mark.slow
@pytest.mark.parametrize("name", [MEDIUM, FLUX])
def test_published_encoders_have_pytorchs_sizes(name):
    configs, sizes = published.CONFIGS[name], published.PARAMETERS[name]
    first = CLIPTextModel if name == FLUX else CLIPTextModelWithProjection
    clip = lambda kind, part: kind(CLIPTextConfig(**configs[part]))
    t5 = "text_encoder_2" if name == FLUX else "text_encoder_3"
    with torch.device("meta"):
        assert numel(clip(first, "text_encoder")) == sizes["text_encoder"]
        if name == MEDIUM:
            second = clip(CLIPTextModelWithProjection, "text_encoder_2")
            assert numel(second) == sizes["text_encoder_2"]
        assert numel(T5EncoderModel(T5Config(**configs[t5]))) == sizes[t5]
        assert numel(AutoencoderKL(**configs["vae"])) == sizes["vae"]
    model, template = model_shapes(name, dtype=jnp.bfloat16, size=(512, 512))
    for part, shapes in template["text_encoder"].items():
        assert count(shapes) == sizes[part]
    assert (count(template["vae"]), model.latent_shape) == (sizes["vae"], (16, 64, 64))
    assert model.tokenize(["a cat"]).shape == (1, 77 + 512 if name == FLUX else 77 + 77 + 256)
