"""LoRA against PEFT: the same factors in PyTorch's UNet give the same output."""

import jax
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model

from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.lora import FILE_NAME, Lora
from diffusionrl_jax.models.parameters import count
from diffusionrl_jax.models.stable_diffusion.folder import save_stable_diffusion

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
EVERYTHING = (*ATTENTION, "ff.net.0.proj", "net.2", "proj_in", "conv1", "conv_shortcut", "linear_1")
TOLERANCE = 1e-5


def random_factors(lora, unet_params):
    """Factors whose products are about a third as large as the kernels."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: np.float32(0.1) * rng.standard_normal(leaf.shape, np.float32)
    return jax.tree.map(draw, jax.eval_shape(lambda: lora.init(unet_params, seed=0)))


def inputs(model):
    rng = np.random.default_rng(1)
    latents = rng.standard_normal((2, *model.latent_shape)).astype(np.float32)
    return latents, np.array([3, 981]), rng.standard_normal((2, 12, 32)).astype(np.float32)


def torch_output(unet, model):
    with torch.no_grad():
        return unet(*(torch.from_numpy(value) for value in inputs(model))).sample.numpy()


@pytest.mark.parametrize(
    ("networks", "targets"),
    [pytest.param("tiny", EVERYTHING, marks=pytest.mark.slow), ("tiny_2", ATTENTION)],
    ids=["1", "2"],
)
def test_peft_computes_the_same(networks, targets, request, tmp_path):
    model, params = request.getfixturevalue(networks)
    folder = tmp_path / "base"
    save_stable_diffusion(folder, model, params, dtype="float32")
    lora = Lora(rank=3, alpha=6.0, targets=targets)
    factors = random_factors(lora, params["unet"])
    adapt = lambda base, factors: model.denoise(lora.merge(base, factors), *inputs(model))
    ours = np.asarray(jax.jit(adapt)(params["unet"], factors))

    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    base = torch_output(pipeline.unet, model)
    # By PEFT's own target matching and scale.
    adapted = get_peft_model(
        pipeline.unet, LoraConfig(r=3, lora_alpha=6, target_modules=list(targets))
    )
    state = weights.to_pytorch(factors)
    theirs = {
        name.removeprefix("base_model.model.").replace(".default.", "."): parameter
        for name, parameter in adapted.named_parameters()
        if ".lora_" in name
    }
    assert set(state) == set(theirs)
    assert count(factors) == sum(parameter.numel() for parameter in theirs.values())
    for name, parameter in theirs.items():
        assert state[name].shape == tuple(parameter.shape)
        parameter.data = torch.from_numpy(np.ascontiguousarray(state[name]))
    expected = torch_output(adapted, model)
    assert np.abs(expected - base).max() > 0.05
    assert np.abs(ours - expected).max() <= TOLERANCE

    # And as a file that carries no alpha.
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    weights.write_safetensors(tmp_path / FILE_NAME, lora.to_pytorch(factors, "unet"))
    pipeline.load_lora_weights(tmp_path, weight_name=FILE_NAME)  # offline, it needs the name
    assert np.abs(ours - torch_output(pipeline.unet, model)).max() <= TOLERANCE


def test_file_round_trip(tiny):
    _, params = tiny
    lora = Lora(rank=2, alpha=1.0, targets=EVERYTHING)  # A scale that divides without rounding.
    factors = random_factors(lora, params["unet"])
    state = lora.to_pytorch(factors, "unet")
    again = lora.to_flax(state, params["unet"], "unet")
    jax.tree.map(np.testing.assert_array_equal, again, factors)
    state.pop("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight")
    with pytest.raises(ValueError, match="the LoRA file lacks .*attn1.to_q.lora_A"):
        lora.to_flax(state, params["unet"], "unet")


def test_factors_start_like_pefts(tiny):
    _, params = tiny
    lora = Lora(
        rank=64,
        alpha=64.0,
        targets=(
            "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
            "down_blocks.0.resnets.0.conv1",
        ),
    )
    factors = jax.jit(lambda: lora.init(params["unet"], seed=0))()
    merged = lora.merge(params["unet"], factors)
    jax.tree.map(np.testing.assert_array_equal, merged, dict(params["unet"]))
    conv = factors["down_blocks_0"]["resnets_0"]["conv1"]["lora_A"]["kernel"]
    linear = factors["mid_block"]["attentions_0"]["transformer_blocks_0"]["attn1"]["to_q"]
    layers = {"conv1": torch.nn.Conv2d(32, 32, 3), "to_q": torch.nn.Linear(64, 64)}
    theirs = get_peft_model(
        torch.nn.ModuleDict(layers), LoraConfig(r=64, target_modules=["conv1", "to_q"])
    )
    for ours, name in ((conv, "conv1"), (linear["lora_A"]["kernel"], "to_q")):
        expected = getattr(theirs.base_model.model, name).lora_A["default"].weight.detach().numpy()
        assert ours.size == expected.size
        # Deviations of some thousand draws are known to a few per cent, bounds better.
        np.testing.assert_allclose(ours.std(), expected.std(), rtol=0.05)
        np.testing.assert_allclose(np.abs(ours).max(), np.abs(expected).max(), rtol=0.01)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": -1}, "lora.rank=-1 must be 1 or more"),
        ({"alpha": 0.0}, "lora.alpha=0.0 must be above 0"),
        ({"targets": ()}, "lora.targets is empty"),
        ({"targets": ("to_q", "to_x")}, "names 'to_x'.* end in .*conv1.*to_out.0.*to_q"),
        ({"targets": ("o_q",)}, "names 'o_q'"),
        ({"targets": ("norm1",)}, "names 'norm1'"),
    ],
)
def test_bad_fields(tiny, fields, message):
    _, params = tiny
    with pytest.raises(ValueError, match=message):
        Lora(**{"rank": 2, "alpha": 2.0, "targets": ATTENTION} | fields).kernels(params["unet"])
