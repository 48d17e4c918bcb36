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
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import CLIPTokenizerFast, PreTrainedTokenizerBase

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders.tokenizer_files import read_clip_tokenizer_files, read_files
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


def are_cut(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], length: int | None = None
) -> np.ndarray:
    """Which prompts have more tokens than `tokenize` leaves them: bool [len(prompts)].

    Args:
      tokenizer: one that makes at most one token of a byte.
      prompts: any number.
      length: as of `tokenize`.
    """
    length = length or tokenizer.model_max_length
    room = length - tokenizer.num_special_tokens_to_add()
    # Most are so short that nobody has to count. Others than ASCII may grow as they are normalised.
    cut = np.array([len(prompt) > room or not prompt.isascii() for prompt in prompts], bool)
    if cut.any():
        doubtful = [prompt for prompt, counts in zip(prompts, cut, strict=True) if counts]
        ids = tokenizer(doubtful, return_attention_mask=False, verbose=False).input_ids
        cut[cut] = [len(of_prompt) > length for of_prompt in ids]
    return cut


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
      FileNotFoundError: there is no such folder, or a file of it is missing.
      UserError: as `tokenizer_files`.
    """
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist; the folder is incomplete.")
    is_clip = "merges_file" in kind.vocab_files_names
    read = read_clip_tokenizer_files if is_clip else read_files
    # transformers reads local folders only.
    with tempfile.TemporaryDirectory() as local:
        for name, content in read(folder).items():
            (epath.Path(local) / name).write_bytes(content)
        return cast(Tokenizer, kind.from_pretrained(local))


# How CLIP takes a text apart (2103.00020), after it is normalised. The markers of a text's begin
# and end stay whole where a prompt says them.
PIECES = (
    *(r"<\|startoftext\|>", r"<\|endoftext\|>"),
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d"),
    *(r"[\p{L}]+", r"[\p{N}]", r"[^\s\p{L}\p{N}]+"),
)


def load_clip_tokenizer(folder: epath.Path) -> CLIPTokenizerFast:
    """Reads CLIP's tokenizer, whose ids are those of transformers 5.

    The CLIPTokenizer of transformers 4 gives others where ftfy is installed, and a tokenizer.json
    may say others. From transformers 5 on, normalisation and pieces are the class's own, and only
    the words, the merges and the added tokens are the folder's: so they are here.

    Args:
      folder: as of `load_tokenizer`.

    Raises:
      FileNotFoundError: there is no such folder.
    """
    tokenizer = load_tokenizer(folder, CLIPTokenizerFast)
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("|".join(PIECES)), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int, name: str) -> None:
    """Refuses a tokenizer that knows tokens that its text encoder does not.

    Args:
      tokenizer: of the text encoder.
      vocab_size: how many tokens the text encoder's embedding has.
      name: of the tokenizer, for the message.

    Raises:
      UserError: there is one; it would be read from beyond the embedding's end.
    """
    unknown = {id: token for token, id in tokenizer.get_vocab().items() if id >= vocab_size}
    if unknown:
        raise UserError(
            f"{name} knows more tokens than the embedding of its text encoder, which has"
            f" {vocab_size}: {len(unknown)} more, the first {unknown[min(unknown)]!r}, number"
            f" {min(unknown)}. Use the tokenizer that the text encoder was trained with, or save"
            " the text encoder after resize_token_embeddings."
        )


def save_tokenizer(folder: epath.Path, tokenizer: CLIPTokenizerFast) -> None:
    """Writes a tokenizer's folder, local or remote."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as local:
        tokenizer.save_pretrained(local)
        for file in epath.Path(local).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
