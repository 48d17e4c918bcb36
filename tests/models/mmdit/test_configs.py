"""What the configs of a folder say that is not supported is refused in one line."""

import contextlib
import json
import shutil

import pytest

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.families import describe_model, load_model


def change(folder, file, **fields):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("file", "fields", "words"),
    [
        ("model_index.json", {"_class_name": "PixArtSigmaPipeline"}, "StableDiffusion3Pipeline"),
        ("model_index.json", {"_class_name": "QwenImagePipeline"}, "StableDiffusion3Pipeline"),
        ("model_index.json", {"_class_name": "FluxKontextPipeline"}, "use one of"),
        ("model_index.json", {"transformer": ["diffusers", "PixArtTransformer2DModel"]}, "is of"),
        ("model_index.json", {"scheduler": ["diffusers", "DDIMScheduler"]}, "FlowMatchEuler"),
        ("model_index.json", {"text_encoder_3": True}, "text_encoder_3 is True.* a list of"),
        ("scheduler/scheduler_config.json", {"use_karras_sigmas": True}, "use_karras_sigmas"),
        ("transformer/config.json", {"_class_name": "QwenImageTransformer2DModel"}, "SD3Trans"),
        ("transformer/config.json", {"in_channels": 33}, "in_channels is 33"),
        ("transformer/config.json", {"qk_norm": "layer_norm"}, "rms_norm"),
        ("transformer/config.json", {"num_layers": "x"}, "num_layers is 'x'"),
        ("transformer/config.json", {"pos_embed_max_size": 7}, "pos_embed.pos_embed"),
        ("transformer/config.json", {"num_layers": 4}, "lacks 'transformer_blocks.2"),
        ("vae/config.json", {"latent_channels": 4}, "latents of the VAE have 4"),
        ("text_encoder_3/config.json", {"feed_forward_proj": "relu"}, "gated-gelu"),
        ("text_encoder_3/config.json", {"vocab_size": None}, "shared.weight.*config.json"),
        ("text_encoder_3/config.json", {"vocab_size": "x"}, "text_encoder_3/config.json: vocab"),
        ("text_encoder_3/config.json", {"num_layers": None}, "lacks .*encoder.block.2"),
        ("text_encoder_3/config.json", {"num_layers": 0}, "text_encoder_3/config.json: num_la"),
        ("text_encoder_3/config.json", {"d_model": "x"}, "text_encoder_3/config.json: d_model is"),
        ("text_encoder_2/config.json", {"projection_dim": 8}, "text encoders make"),
    ],
)
def test_what_is_not_supported_is_refused_in_one_line(make_folder, tmp_path, file, fields, words):
    folder = tmp_path / "changed"
    shutil.copytree(make_folder(), folder)
    change(folder, file, **fields)
    with pytest.raises(UserError, match=words) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)
    # What is planned with comes before the weights.
    with contextlib.suppress(UserError):
        describe_model(str(folder))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"in_channels": 96, "out_channels": 16}, "Fill, Depth, Canny"),
        ({"in_channels": 32}, "latents of the VAE have 64"),
        ({"axes_dims_rope": [4, 4, 4]}, "attention_head_dim, 16"),
        ({"patch_size": 2}, "must be 1"),
        ({"pooled_projection_dim": 16}, "text encoders make 24"),
        ({"joint_attention_dim": 32}, "joint_attention_dim=32"),
    ],
)
def test_other_fluxes_are_refused(make_folder, tmp_path, fields, words):
    folder = tmp_path / "changed"
    shutil.copytree(make_folder(flux=True), folder)
    change(folder, "transformer/config.json", **fields)
    with pytest.raises(UserError, match=words):
        load_model(str(folder))
