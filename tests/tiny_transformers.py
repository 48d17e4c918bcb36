"""Tiny folders of transformers, written by PyTorch's diffusers, with random weights."""

import json
import math

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)
from transformers.models.clip.tokenization_clip import bytes_to_unicode

TOKENS = 12
FLUX = {
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "pooled_projection_dim": 24,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}
JOINT = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 36,
    "pos_embed_max_size": 6,
    "dual_attention_layers": (0, 1),
    "qk_norm": "rms_norm",
}
VAE = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 16,
    "norm_num_groups": 8,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
CLIP = {
    "bos_token_id": 512,
    "eos_token_id": 513,
    "hidden_size": 24,
    "intermediate_size": 32,
    "max_position_embeddings": TOKENS,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "projection_dim": 16,
    "vocab_size": 514,
}
SECOND = {"hidden_act": "gelu", "hidden_size": 16, "projection_dim": 20, "eos_token_id": 2}
T5 = {
    "d_model": 48,
    "d_kv": 8,
    "d_ff": 32,
    "num_heads": 2,
    "num_layers": 2,
    "vocab_size": 260,
    "feed_forward_proj": "gated-gelu",
}


def clip_tokenizer(folder, **options):
    """CLIP's tokenizer of single bytes."""
    folder.mkdir(parents=True)
    symbols = list(bytes_to_unicode().values())
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    return CLIPTokenizer(*files, model_max_length=TOKENS, **options)


def t5_tokenizer():
    """T5's tokenizer of single bytes. It states what published ones do and PyTorch converts by."""
    words = ["<pad>", "</s>", "<unk>", *bytes_to_unicode().values()]
    tokenizer = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        "$A </s>", special_tokens=[("</s>", 1)]
    )
    whole = T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0)
    whole.init_kwargs["add_prefix_space"] = whole.add_prefix_space = True
    return whole


def t5_encoder():
    """A random T5 encoder, whose tokens are not scaled by anything."""
    encoder = randomise(T5EncoderModel(T5Config(**T5)))
    encoder.shared.weight.data *= T5["d_model"] ** 0.5
    return encoder


def randomise(network):
    """Gives a network weights that keep numbers of order one, norms and biases among them.

    As they are initialised, the modulations would be too weak to be seen.
    """
    for name, parameter in network.named_parameters():
        noise = torch.randn_like(parameter)
        if name.endswith("bias"):
            parameter.data = 0.1 * noise
        elif parameter.ndim == 1:
            parameter.data = 1 + 0.1 * noise
        else:
            parameter.data = noise * parameter[0].numel() ** -0.5
    return network.eval()


class ExactSinusoids(torch.nn.Module):
    """In place of PyTorch's frequencies, which are an ulp off: it moves sines at 1000 by 6e-5."""

    def forward(self, times):
        exact = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float64) / 128)
        angles = times[:, None].double() * exact.float().double()
        return torch.cat([angles.cos(), angles.sin()], dim=1).float()


def make_sd3(folder, *, t5=True, **transformer):
    """PyTorch's pipeline of a tiny Stable Diffusion 3.

    Args:
      folder: an empty folder, for the tokenizers.
      t5: whether it has its third text encoder.
      **transformer: changes to `JOINT`.
    """
    torch.manual_seed(0)
    return StableDiffusion3Pipeline(
        transformer=randomise(SD3Transformer2DModel(**JOINT | transformer)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(**VAE).eval(),
        text_encoder=randomise(CLIPTextModelWithProjection(CLIPTextConfig(**CLIP))),
        tokenizer=clip_tokenizer(folder / "first"),
        text_encoder_2=randomise(CLIPTextModelWithProjection(CLIPTextConfig(**CLIP | SECOND))),
        tokenizer_2=clip_tokenizer(folder / "second", pad_token="!"),
        text_encoder_3=t5_encoder() if t5 else None,
        tokenizer_3=t5_tokenizer() if t5 else None,
    )


def make_flux(folder, **transformer):
    """PyTorch's pipeline of a tiny FLUX.

    Args:
      folder: an empty folder, for the tokenizer.
      **transformer: changes to `FLUX`.
    """
    torch.manual_seed(0)
    dynamic = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    return FluxPipeline(
        transformer=randomise(FluxTransformer2DModel(**FLUX | transformer)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, **dynamic),
        vae=AutoencoderKL(**VAE).eval(),
        text_encoder=randomise(CLIPTextModel(CLIPTextConfig(**CLIP))),
        tokenizer=clip_tokenizer(folder / "first"),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
    )
