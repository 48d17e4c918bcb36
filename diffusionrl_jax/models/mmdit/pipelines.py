"""Names the parts of the folders of Stable Diffusion 3, 3.5 and FLUX, and how they are stored."""

import dataclasses
from collections.abc import Mapping

from diffusionrl_jax.models import t5
from diffusionrl_jax.models.folders import networks, weights
from diffusionrl_jax.models.folders.networks import SECOND, THIRD, Kind
from diffusionrl_jax.models.folders.tensor_files import DIFFUSERS_STEM
from diffusionrl_jax.models.mmdit.flux import PATCH_SIZE
from diffusionrl_jax.models.mmdit.positions import TABLE

T5, FLUX = "T5EncoderModel", "FluxTransformer2DModel"


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """What a kind of folder holds.

    Attributes:
      kinds: its networks, and how each is stored.
      tokenizers: for each text encoder, the name and the class of its tokenizer.
      text_tokens: how many tokens T5 reads, unless one says otherwise.
      optional: the text encoders that a folder may leave out.
      reads_clip_states: whether the states of CLIP's text encoders are read, beside T5's. Else only
        the state of the end of the text is.
      patch_size: how many rows, and columns, of latents a token stands for; None where the
        transformer's config says it.
      sample_size: the rows and columns of latents of a picture, whatever the transformer's config
        says; None where that is what says it.
      timestep_spacing: as in `flow_schedulers.TIMESTEP_SPACINGS`.
    """

    kinds: Mapping[str, Kind]
    tokenizers: Mapping[str, tuple[str, str]]
    text_tokens: int
    optional: tuple[str, ...] = ()
    reads_clip_states: bool = True
    patch_size: int | None = None
    sample_size: int | None = None
    timestep_spacing: str = "linspace"

    def packed_channels(self, channels: int) -> int:
        """Returns what the transformer's config has to call its channels, by the VAE's number.

        FLUX counts those of a token.
        """
        return channels * (self.patch_size or 1) ** 2


_T5 = Kind("transformers", T5, "model", t5.t5_name, t5.stored_t5_name)
_CLIP = networks.KINDS[SECOND]
_VAE = networks.KINDS["vae"]
_CLIP_TOKENIZER, _T5_TOKENIZER = "CLIPTokenizer", "T5TokenizerFast"
PIPELINES = {
    "StableDiffusion3Pipeline": Pipeline(
        kinds={
            "transformer": Kind(
                "diffusers",
                "SD3Transformer2DModel",
                DIFFUSERS_STEM,
                passed_over=(*weights.BUFFERS, f"^{TABLE}$"),
            ),
            "vae": _VAE,
            "text_encoder": _CLIP,
            SECOND: _CLIP,
            THIRD: _T5,
        },
        tokenizers={
            "text_encoder": ("tokenizer", _CLIP_TOKENIZER),
            SECOND: ("tokenizer_2", _CLIP_TOKENIZER),
            THIRD: ("tokenizer_3", _T5_TOKENIZER),
        },
        text_tokens=256,
        optional=(THIRD,),
    ),
    "FluxPipeline": Pipeline(
        kinds={
            "transformer": Kind("diffusers", FLUX, DIFFUSERS_STEM),
            "vae": _VAE,
            "text_encoder": networks.KINDS["text_encoder"],
            SECOND: _T5,
        },
        tokenizers={
            "text_encoder": ("tokenizer", _CLIP_TOKENIZER),
            SECOND: ("tokenizer_2", _T5_TOKENIZER),
        },
        text_tokens=512,
        reads_clip_states=False,
        patch_size=PATCH_SIZE,
        sample_size=128,
        timestep_spacing="trailing",
    ),
}
