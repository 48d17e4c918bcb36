"""The parts of folders are those that diffusers' pipelines are made of."""

import inspect
import re

import diffusers
import pytest
import torch

from diffusionrl_jax.models.mmdit.configs import JOINT_DEFAULTS
from diffusionrl_jax.models.mmdit.pipelines import PIPELINES
from tests.tiny_transformers import FLUX, JOINT


@pytest.mark.parametrize("name", PIPELINES)
def test_parts_and_their_classes_are_diffusers(name):
    kind, ours = getattr(diffusers, name), PIPELINES[name]
    parts = inspect.signature(kind).parameters
    classes = {
        part: parts[part].annotation.__name__
        for part in parts
        if part not in ("scheduler", *kind._optional_components)
    }
    networks = {part: of.name for part, of in ours.kinds.items()}
    assert networks | dict(ours.tokenizers.values()) == classes
    libraries = {part: parts[part].annotation.__module__.split(".")[0] for part in networks}
    assert libraries == {part: of.library for part, of in ours.kinds.items()}


@pytest.mark.parametrize("name", PIPELINES)
def test_t5_reads_as_many_tokens_as_in_diffusers(name):
    parameters = inspect.signature(getattr(diffusers, name).__call__).parameters
    assert PIPELINES[name].text_tokens == parameters["max_sequence_length"].default


def test_channels_are_counted_as_in_the_transformers_configs():
    flux, joint = PIPELINES["FluxPipeline"], PIPELINES["StableDiffusion3Pipeline"]
    packed = diffusers.FluxPipeline._pack_latents(torch.zeros(1, 16, 4, 6), 1, 16, 4, 6)
    assert packed.shape[2] == flux.packed_channels(16)
    defaults = inspect.signature(diffusers.SD3Transformer2DModel).parameters
    assert joint.packed_channels(16) == defaults["in_channels"].default
    assert joint.sample_size is None
    assert JOINT_DEFAULTS["sample_size"] == defaults["sample_size"].default


@pytest.mark.parametrize(
    ("name", "fields"), [("StableDiffusion3Pipeline", JOINT), ("FluxPipeline", FLUX)]
)
def test_what_is_no_parameter_of_a_transformer_is_passed_over(name, fields):
    kind = PIPELINES[name].kinds["transformer"]
    with torch.device("meta"):
        network = getattr(diffusers, kind.name)(**fields)
    passed = {
        tensor
        for tensor in network.state_dict()
        if any(re.search(pattern, tensor) for pattern in kind.passed_over)
    }
    assert passed == network.state_dict().keys() - dict(network.named_parameters()).keys()
