"""Published configs: the parameters that torch, without any memory, makes of them."""

import diffusers
import pytest
import torch
import transformers

from diffusionrl_jax.models.folders import published

CLASSES = {
    "unet": (diffusers.UNet2DConditionModel, None),
    "vae": (diffusers.AutoencoderKL, None),
    "text_encoder": (transformers.CLIPTextModel, transformers.CLIPTextConfig),
    "text_encoder_2": (transformers.CLIPTextModelWithProjection, transformers.CLIPTextConfig),
}


def count(network, config):
    """How many parameters the PyTorch class has."""
    kind, of = CLASSES[network]
    with torch.device("meta"):
        made = kind(of(**config)) if of else kind.from_config(dict(config))
    return sum(parameter.numel() for parameter in made.parameters())


@pytest.mark.parametrize(
    ("name", "network"),
    [
        *((name, "text_encoder") for name in published.CONFIGS),
        ("sd15", "vae"),
        *(
            pytest.param(name, network, marks=pytest.mark.slow)
            for name in published.CONFIGS
            for network in ("unet", "vae")
            if (name, network) != ("sd15", "vae")
        ),
    ],
)
def test_numbers_of_parameters_are_pytorchs(name, network):
    configs = published.CONFIGS[name]
    networks = [network] + ["text_encoder_2"] * (network + "_2" in configs)
    found = sum(count(each, configs[each]) for each in networks)
    assert found == published.PARAMETERS[name][network]


@pytest.mark.parametrize(("ours", "kind"), [("OWL_VIT", "OwlViT"), ("OWLV2", "Owlv2")])
def test_detectors_have_transformers_own_defaults(ours, kind):
    """Those are of google/owlvit-base-patch32 and google/owlv2-base-patch16."""
    config = getattr(published, ours)
    theirs = getattr(transformers, f"{kind}Config")()
    assert (config["model_type"], config["projection_dim"]) == (
        theirs.model_type,
        theirs.projection_dim,
    )
    for part in ("text_config", "vision_config"):
        own = getattr(transformers, f"{kind}{part.partition('_')[0].title()}Config")()
        for field, value in config[part].items():
            if (ours, field) != ("OWLV2", "image_size"):  # The ensemble's is 960.
                assert value == getattr(own, field), field


@pytest.mark.parametrize("name", published.HUB_IDS)
def test_a_model_is_known_by_its_short_name_and_its_id(name):
    assert published.short_name(name) == published.short_name(published.HUB_IDS[name]) == name
    assert published.CONFIGS.keys() == published.PARAMETERS.keys() == published.HUB_IDS.keys()
    assert published.short_name("somebody/else") is None
