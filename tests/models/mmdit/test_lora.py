"""LoRA on stacks of blocks against PEFT in PyTorch's pipeline."""

import functools

import jax
import numpy as np
import pytest
import torch

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.attention import attend
from diffusionrl_jax.models.families import load_model
from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.lora import FILE_NAME, Lora
from diffusionrl_jax.models.lora_files import read_lora
from diffusionrl_jax.models.text_encoders import Conditioning
from tests.models.mmdit.test_folder import open_pytorch

# Those of Flow-GRPO (2505.05470), in its released code.
TARGETS = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
)


def inputs(model):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    text = Conditioning(draw(2, 7, 48), draw(2, 36))
    # Low times: PyTorch rounds the frequencies of its sinusoids on the way. At 0.9 an angle is off
    # by up to 6e-5 for it, and the output by 17 times all that is left with PyTorch's frequencies.
    return draw(2, *model.latent_shape), np.array([0.3, 0.2], np.float32), text


def test_pytorch_loads_the_file_and_computes_the_same(make_folder, tmp_path):
    folder = make_folder()
    model, params = load_model(str(folder))
    base = params["transformer"]
    lora = Lora(rank=4, alpha=8.0, targets=TARGETS)
    rng = np.random.default_rng(0)
    draw = lambda leaf: np.float32(0.2) * rng.standard_normal(leaf.shape, np.float32)
    factors = jax.tree.map(draw, jax.eval_shape(lambda: lora.init(base, seed=0)))
    weights.write_safetensors(tmp_path / FILE_NAME, lora.to_pytorch(factors, "transformer"))
    latents, times, text = inputs(model)
    denoise = functools.partial(model.transformer.denoise, attend=attend)
    ours = jax.jit(lambda base, factors: denoise(lora.merge(base, factors), latents, times, text))(
        base, factors
    )

    def theirs(transformer):
        with torch.no_grad():
            return transformer(
                torch.from_numpy(latents),
                timestep=1000 * torch.from_numpy(times),
                encoder_hidden_states=torch.from_numpy(text.states),
                pooled_projections=torch.from_numpy(text.pooled),
            ).sample.numpy()

    pipeline = open_pytorch(folder)
    unchanged = theirs(pipeline.transformer)
    pipeline.load_lora_weights(tmp_path, weight_name=FILE_NAME)
    expected = theirs(pipeline.transformer)
    assert np.abs(expected - unchanged).max() > 0.1
    assert np.abs(ours - expected).max() <= 5e-6 * np.abs(expected).max()

    # Read again, the file is the same change; its targets are the modules by their whole names.
    again, read = read_lora(str(tmp_path), "--lora", "transformer", base)
    for one, other in zip(
        jax.tree.leaves(again.merge(base, read)),
        jax.tree.leaves(lora.merge(base, factors)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_first_factors_are_drawn_for_each_layer(make_folder):
    model, _ = load_model(str(make_folder()))
    template = model.transformer.template()
    factors = Lora(rank=64, alpha=64.0, targets=TARGETS).init(template, seed=0)
    drawn = factors["transformer_blocks_0_to_1"]["attn"]["to_q"]["lora_A"]["kernel"]
    assert drawn.shape == (2, 32, 64)
    # Uniform over -1 to 1, over the root of the inputs, as in PEFT.
    np.testing.assert_allclose(np.std(drawn, axis=(1, 2)), (3 * 32) ** -0.5, rtol=0.05)
    assert np.abs(drawn).max() <= 32**-0.5
    assert not np.array_equal(drawn[0], drawn[1])


def test_some_layers_of_a_stack_are_refused(make_folder):
    model, _ = load_model(str(make_folder()))
    lora = Lora(rank=2, alpha=2.0, targets=("transformer_blocks.1.attn.to_q",))
    with pytest.raises(UserError, match="some of transformer_blocks.0.attn.to_q to .*1.attn.to_q"):
        lora.kernels(model.transformer.template())


def test_a_file_of_some_layers_of_a_stack_is_merged_as_pytorch_does(make_folder, tmp_path):
    folder = make_folder(flux=True)
    base = load_model(str(folder))[1]["transformer"]
    rng = np.random.default_rng(0)
    state = {}
    for module, (inputs, outputs) in {
        "single_transformer_blocks.0.attn.to_q": (32, 32),
        "single_transformer_blocks.2.attn.to_q": (32, 32),
        "single_transformer_blocks.1.proj_mlp": (32, 128),
        "transformer_blocks.1.attn.add_k_proj": (32, 32),
    }.items():
        draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
        state[f"transformer.{module}.lora_A.weight"] = draw(2, inputs)
        state[f"transformer.{module}.lora_B.weight"] = draw(outputs, 2)
    weights.write_safetensors(tmp_path / FILE_NAME, state)
    lora, factors = read_lora(str(tmp_path), "config.lora.start", "transformer", base)
    merged = weights.to_pytorch(lora.merge(base, factors))
    pipeline = open_pytorch(folder, flux=True)
    pipeline.load_lora_weights(tmp_path, weight_name=FILE_NAME)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    expected = pipeline.transformer.state_dict()
    assert expected.keys() == merged.keys()
    untouched = weights.to_pytorch(base)
    changed = [name for name in merged if not np.array_equal(merged[name], untouched[name])]
    assert {f"transformer.{name.removesuffix('weight')}lora_A.weight" for name in changed} == {
        key for key in state if "lora_A" in key
    }
    for name, tensor in expected.items():
        np.testing.assert_allclose(merged[name], tensor.numpy(), atol=1e-6, err_msg=name)
    with pytest.raises(UserError, match="leaves out .*config.lora.rank=0, to merge it"):
        read_lora(str(tmp_path), "config.lora.start", "transformer", base, one_rank=True)
