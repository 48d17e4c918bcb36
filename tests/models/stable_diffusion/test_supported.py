"""Configs that Flax would compute otherwise than PyTorch are refused."""

import pytest

from diffusionrl_jax.models.stable_diffusion.build import build_stable_diffusion


@pytest.mark.parametrize(
    ("network", "change", "words"),
    [
        ("unet", {"norm_num_groups": 16}, "norm_num_groups is 16"),
        ("unet", {"block_out_channels": [32, 48]}, "multiples of 32"),
        ("unet", {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}, "AttnDownBlock2D"),
        ("unet", {"num_attention_heads": 4}, "num_attention_heads is 4"),
        ("unet", {"attention_head_dim": [5, 4]}, "attention_head_dim"),
        ("unet", {"attention_head_dim": [4]}, "attention_head_dim"),
        ("unet", {"addition_embed_type": "text_time"}, "addition_embed_type .*one text encoder"),
        ("unet", {"addition_embed_type": "image"}, "addition_embed_type is 'image'"),
        ("unet", {"class_embed_type": "projection"}, "class_embed_type is 'projection'"),
        ("unet", {"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type is 'text_proj'"),
        ("unet", {"transformer_layers_per_block": [1]}, r"layers_per_block is \[1\]"),
        ("unet", {"transformer_layers_per_block": [1, [1, 2]]}, "transformer_layers_per_block"),
        ("unet", {"in_channels": 9}, "inpainting"),
        ("unet", {"cross_attention_dim": 64}, "text embeddings 64 wide"),
        ("unet", {"sample_size": None}, "sample_size missing"),
        ("vae", {"use_quant_conv": False}, "use_quant_conv is False"),
        ("vae", {"shift_factor": 0.1}, "shift_factor is 0.1"),
        ("vae", {"latents_mean": [0.0] * 4}, "latents_mean is"),
        ("vae", {"norm_num_groups": 12}, "norm_num_groups 12"),
        ("text_encoder", {"max_position_embeddings": 8}, "8 positions"),
        ("text_encoder", {"model_type": "t5"}, "model_type is 't5'"),
        ("text_encoder", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("text_encoder", {"use_attention_mask": True}, "use_attention_mask is True"),
        ("text_encoder", {"hidden_size": None}, "hidden_size missing"),
    ],
)
def test_refuses_what_flax_computes_wrongly(configs, tokenizer, network, change, words):
    changed = {**configs, network: {**configs[network], **change}}
    with pytest.raises(ValueError, match=words):
        build_stable_diffusion(changed, tokenizer)


@pytest.mark.parametrize(
    ("network", "change", "words"),
    [
        ("unet", {"addition_embed_type": None}, "addition_embed_type is None.*two text encoders"),
        ("unet", {"addition_time_embed_dim": None}, "addition_time_embed_dim 0"),
        ("unet", {"projection_class_embeddings_input_dim": 5 * 8 + 24}, "make 72: only XL base"),
        ("unet", {"cross_attention_dim": 48}, "48 wide, but the text encoders make 80"),
        ("text_encoder_2", {"projection_dim": 32}, "pooled text of 32 make 80"),
        ("text_encoder_2", {"max_position_embeddings": 8}, "text_encoder_2.*8 positions"),
        ("text_encoder_2", {"hidden_act": "relu"}, "text_encoder_2 .*'relu'"),
    ],
)
def test_refuses_what_does_not_fit_in_xl(
    configs_xl, tokenizer, tokenizer_2, network, change, words
):
    changed = {**configs_xl, network: {**configs_xl[network], **change}}
    with pytest.raises(ValueError, match=words):
        build_stable_diffusion(changed, tokenizer, tokenizer_2=tokenizer_2)
