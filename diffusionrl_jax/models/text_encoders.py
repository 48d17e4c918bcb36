"""Prompts as what the UNet is conditioned on: tokenizers, CLIP text encoders, XL's pair of them."""

import tempfile
from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from diffusionrl_jax.data.files import read_json
from diffusionrl_jax.models.parameters import Parameters, apply


@flax.struct.dataclass
class Conditioning:
    """What XL's UNet takes from a prompt (2307.01952); the other UNets take `states` alone.

    Attributes:
      states: [n, tokens, width], of both text encoders side by side.
      pooled: [n, width'], of the second one.
      time_ids: float32 [n, 6] in pixels: height and width of the original picture, top and left of
        the crop, height and width of the crop.
    """

    states: jax.Array
    pooled: jax.Array
    time_ids: jax.Array


# A tree of arrays whose first axis is the prompt's; what it holds, this module and
# `StableDiffusion` know alone.
Text = jax.Array | Conditioning
STATES, POOLED, TIME_IDS = (f"text_{name}" for name in ("states", "pooled", "time_ids"))


def text_to_arrays(text: Text) -> dict[str, jax.Array]:
    """The text as named arrays, to be kept: "text_states", and of XL two more."""
    if isinstance(text, Conditioning):
        return {STATES: text.states, POOLED: text.pooled, TIME_IDS: text.time_ids}
    return {STATES: text}


def text_from_arrays(arrays: Mapping[str, jax.Array]) -> Text | None:
    """The inverse of `text_to_arrays`; None where there is no text among the arrays."""
    if POOLED in arrays:
        return Conditioning(arrays[STATES], arrays[POOLED], arrays[TIME_IDS])
    return arrays.get(STATES)


Tokenizer = TypeVar("Tokenizer", bound=PreTrainedTokenizerBase)


def tokenize(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], length: int | None = None
) -> np.ndarray:
    """Token ids int32 [len(prompts), length], truncated and padded; model_max_length by default."""
    ids = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=length or tokenizer.model_max_length,
        truncation=True,
        return_tensors="np",
    ).input_ids
    return ids.astype(np.int32)


def _apply(encoder: nn.Module, params: Parameters, input_ids: jax.Array, **options):
    # Padding is attended to, as Stable Diffusion was trained.
    positions = jnp.broadcast_to(jnp.arange(input_ids.shape[-1]), input_ids.shape)
    mask = jnp.ones_like(input_ids)
    return apply(encoder, {"params": params}, input_ids, mask, positions, **options)


def last_states(encoder: nn.Module, params: Parameters, input_ids: jax.Array) -> jax.Array:
    """The last layer's states after the final normalisation: [n, tokens, width]."""
    return _apply(encoder, params, input_ids).last_hidden_state


def penultimate_states(
    encoder: nn.Module, params: Parameters, input_ids: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """The last layer's inputs, and the projected state of the end of the text.

    Returns:
      [n, tokens, width] without the final normalisation, and [n, projection_dim], or None of an
      encoder without a projection.
    """
    output = _apply(encoder, params, input_ids, output_hidden_states=True)
    return output.hidden_states[-2], getattr(output, "text_embeds", None)


def load_tokenizer(folder: epath.Path, kind: type[Tokenizer]) -> Tokenizer:
    """Reads a tokenizer's folder, local or remote.

    Args:
      folder: with the tokenizer's files, and perhaps others.
      kind: the tokenizer's class.

    Raises:
      FileNotFoundError: there is no such folder.
      UserError: a file of it is no JSON object.
    """
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist; the folder is incomplete.")
    # transformers reads local folders only.
    with tempfile.TemporaryDirectory() as local:
        for file in folder.iterdir():
            if file.suffix == ".json":
                read_json(file)  # transformers' errors do not name the file.
            if file.suffix in (".json", ".txt"):
                (epath.Path(local) / file.name).write_bytes(file.read_bytes())
        return cast(Tokenizer, kind.from_pretrained(local))


def save_tokenizer(folder: epath.Path, tokenizer: CLIPTokenizer) -> None:
    """Writes a tokenizer's folder, local or remote."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as local:
        tokenizer.save_pretrained(local)
        for file in epath.Path(local).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
