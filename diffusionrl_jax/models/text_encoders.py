"""Turns prompts into what the UNet is conditioned on: tokenizers and CLIP text encoders."""

import shlex
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
from transformers import CLIPTokenizerFast, PreTrainedTokenizerBase, T5TokenizerFast

from diffusionrl_jax.mistakes import UserError, shown
from diffusionrl_jax.models.folders.tokenizer_files import (
    WHOLE_TOKENIZER,
    read_clip_tokenizer_files,
    read_files,
)
from diffusionrl_jax.models.parameters import Parameters, apply


@flax.struct.dataclass
class Conditioning:
    """What XL's UNet (2307.01952), or a transformer (2403.03206), takes from a prompt.

    The other UNets take `states` alone.

    Attributes:
      states: the states of the text encoders, [n, tokens, width]. Those of CLIP stand side by side.
      pooled: the state of the end of the text, [n, width']: of XL's second text encoder it is the
        projected one.
      time_ids: of XL alone, float32 [n, 6] in pixels: the height and width of the original picture,
        the top and left of the crop, and the height and width of the crop.
    """

    states: jax.Array
    pooled: jax.Array
    time_ids: jax.Array | None = None


# A tree of arrays whose first axis is the prompt's. Only this module and `StableDiffusion` know
# what it holds.
Text = jax.Array | Conditioning
STATES, POOLED, TIME_IDS = (f"text_{name}" for name in ("states", "pooled", "time_ids"))


def text_to_arrays(text: Text) -> dict[str, jax.Array]:
    """Returns the text as named arrays, to be kept: "text_states", and what else there is."""
    if not isinstance(text, Conditioning):
        return {STATES: text}
    sizes = {} if text.time_ids is None else {TIME_IDS: text.time_ids}
    return {STATES: text.states, POOLED: text.pooled} | sizes


def text_from_arrays(arrays: Mapping[str, jax.Array]) -> Text | None:
    """Returns the text that `text_to_arrays` has named, or None where the arrays hold no text."""
    if POOLED in arrays:
        return Conditioning(arrays[STATES], arrays[POOLED], arrays.get(TIME_IDS))
    return arrays.get(STATES)


Tokenizer = TypeVar("Tokenizer", bound=PreTrainedTokenizerBase)


def tokenize(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], length: int | None = None
) -> np.ndarray:
    """Returns the prompts' token ids, truncated and padded, int32 [len(prompts), length].

    Args:
      tokenizer: the tokenizer.
      prompts: any number of prompts.
      length: how many tokens each prompt has in the end; None means the tokenizer's
        model_max_length.
    """
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
    """Returns which prompts have more tokens than `tokenize` leaves them, bool [len(prompts)].

    Args:
      tokenizer: a tokenizer that makes at most one token of each byte.
      prompts: any number of prompts.
      length: the number of tokens, as in `tokenize`.
    """
    length = length or tokenizer.model_max_length
    room = length - tokenizer.num_special_tokens_to_add()
    # Most prompts are so short that their tokens need not be counted. Prompts that are not ASCII
    # may grow as they are normalised.
    cut = np.array([len(prompt) > room or not prompt.isascii() for prompt in prompts], bool)
    if cut.any():
        doubtful = [prompt for prompt, counts in zip(prompts, cut, strict=True) if counts]
        ids = tokenizer(doubtful, return_attention_mask=False, verbose=False).input_ids
        cut[cut] = [len(of_prompt) > length for of_prompt in ids]
    return cut


def _apply(encoder: nn.Module, params: Parameters, input_ids: jax.Array, **options):
    """Returns a text encoder's output for token ids [n, tokens]."""
    # Padding is attended to, as Stable Diffusion was trained.
    positions = jnp.broadcast_to(jnp.arange(input_ids.shape[-1]), input_ids.shape)
    mask = jnp.ones_like(input_ids)
    return apply(encoder, {"params": params}, input_ids, mask, positions, **options)


def last_states(encoder: nn.Module, params: Parameters, input_ids: jax.Array) -> jax.Array:
    """Returns the last layer's states after the final normalisation, [n, tokens, width]."""
    return _apply(encoder, params, input_ids).last_hidden_state


def pooled_state(encoder: nn.Module, params: Parameters, input_ids: jax.Array) -> jax.Array:
    """Returns the state of the end of the text after the final normalisation, [n, width]."""
    return _apply(encoder, params, input_ids).pooler_output


def penultimate_states(
    encoder: nn.Module, params: Parameters, input_ids: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Returns the last layer's inputs, and the projected state of the end of the text.

    Returns:
      The inputs without the final normalisation, [n, tokens, width]; and the projected state, [n,
      projection_dim], or None if the encoder has no projection.
    """
    output = _apply(encoder, params, input_ids, output_hidden_states=True)
    return output.hidden_states[-2], getattr(output, "text_embeds", None)


def load_tokenizer(folder: epath.Path, kind: type[Tokenizer]) -> Tokenizer:
    """Reads a tokenizer's folder, local or remote.

    Args:
      folder: a folder with the tokenizer's files, and perhaps others.
      kind: the tokenizer's class.

    Raises:
      FileNotFoundError: there is no such folder, or a file in it is missing.
      UserError: as `tokenizer_files`, or the files do not make a tokenizer; it names the folder.
    """
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist; the folder is incomplete.")
    is_clip = "merges_file" in kind.vocab_files_names
    read = read_clip_tokenizer_files if is_clip else read_files
    # transformers reads local folders only.
    with tempfile.TemporaryDirectory() as local:
        for name, content in read(folder).items():
            (epath.Path(local) / name).write_bytes(content)
        try:
            return cast(Tokenizer, kind.from_pretrained(local))
        except Exception as error:  # Most are plain ones, of tokenizers.
            raise UserError(
                f"{folder}: its tokenizer cannot be read ({shown(error)}): copy or download the "
                "folder again."
            ) from error


# How CLIP takes a text apart (2103.00020), after it is normalised. The markers of a text's start
# and end stay whole where a prompt contains them.
PIECES = (
    *(r"<\|startoftext\|>", r"<\|endoftext\|>"),
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d"),
    *(r"[\p{L}]+", r"[\p{N}]", r"[^\s\p{L}\p{N}]+"),
)


def load_clip_tokenizer(folder: epath.Path) -> CLIPTokenizerFast:
    """Reads CLIP's tokenizer, whose ids are those of transformers 5.

    The CLIPTokenizer of transformers 4 gives other ids where ftfy is installed, and so may a
    tokenizer.json. From transformers 5 on, the class itself sets how a text is normalised and taken
    apart, and only the words, the merges and the added tokens are the folder's. The same holds
    here.

    Args:
      folder: the tokenizer's folder, as in `load_tokenizer`.

    Raises:
      FileNotFoundError, UserError: as `load_tokenizer`.
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


def load_t5_tokenizer(folder: epath.Path) -> T5TokenizerFast:
    """Reads T5's tokenizer from its tokenizer.json, which holds all that its spiece.model does.

    Args:
      folder: the tokenizer's folder, as in `load_tokenizer`.

    Raises:
      FileNotFoundError, UserError: as `load_tokenizer`.
    """
    if folder.exists() and not (folder / WHOLE_TOKENIZER).exists():
        raise FileNotFoundError(
            f"{folder / WHOLE_TOKENIZER} does not exist: copy or download the folder again. If it "
            "has a spiece.model alone, this writes the file, where sentencepiece is installed: "
            'python -c "import sys, transformers; transformers.T5TokenizerFast.from_pretrained('
            f'sys.argv[1]).save_pretrained(sys.argv[1])" {shlex.quote(str(folder))}'
        )
    return load_tokenizer(folder, T5TokenizerFast)


def check_length(tokenizer: PreTrainedTokenizerBase, positions: int, name: str) -> None:
    """Refuses a tokenizer that pads to more tokens than its text encoder has positions.

    Args:
      tokenizer: the text encoder's tokenizer.
      positions: how many positions the text encoder has.
      name: what the message calls the text encoder.

    Raises:
      UserError: it does.
    """
    if (length := tokenizer.model_max_length) > positions:
        raise UserError(
            f"The tokenizer of {name} pads to {length} tokens, but the text encoder has "
            f"{positions} positions; set model_max_length in its tokenizer_config.json."
        )


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int, name: str) -> None:
    """Refuses a tokenizer that knows tokens that its text encoder does not.

    Args:
      tokenizer: the text encoder's tokenizer.
      vocab_size: how many tokens the text encoder's embedding has.
      name: what the message calls the tokenizer.

    Raises:
      UserError: there is such a token, which would be looked up beyond the embedding's end.
    """
    unknown = {id: token for token, id in tokenizer.get_vocab().items() if id >= vocab_size}
    if unknown:
        raise UserError(
            f"{name} knows more tokens than the embedding of its text encoder, which has"
            f" {vocab_size}: {len(unknown)} more, the first {unknown[min(unknown)]!r}, number"
            f" {min(unknown)}. Use the tokenizer that the text encoder was trained with, or save"
            " the text encoder after resize_token_embeddings."
        )


def save_tokenizer(folder: epath.Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes a tokenizer's folder, local or remote."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as local:
        tokenizer.save_pretrained(local)
        for file in epath.Path(local).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
