"""Names the parts of the folders of Stable Diffusion 3 and 3.5, and how they are stored."""

import dataclasses
from collections.abc import Mapping

from diffusionrl_jax.models import t5
from diffusionrl_jax.models.folders import networks, weights
from diffusionrl_jax.models.folders.networks import SECOND, THIRD, Kind
from diffusionrl_jax.models.folders.tensor_files import DIFFUSERS_STEM
from diffusionrl_jax.models.mmdit.positions import TABLE

T5 = "T5EncoderModel"


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """What a kind of folder holds.

    Attributes:
      kinds: its networks, and how each is stored.
      tokenizers: for each text encoder, the name and the class of its tokenizer.
      text_tokens: how many tokens T5 reads, unless one says otherwise.
      optional: the text encoders that a folder may leave out.
    """

    kinds: Mapping[str, Kind]
    tokenizers: Mapping[str, tuple[str, str]]
    text_tokens: int
    optional: tuple[str, ...] = ()


_T5 = Kind("transformers", T5, "model", t5.t5_name, t5.stored_t5_name)
_CLIP = networks.KINDS[SECOND]
_VAE = networks.KINDS["vae"]
# transformers 4 reads a T5 tokenizer as fast as 5 does, whatever the class is called.
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
}
