"""Reads a reward model's folder: config.json, model.safetensors, and its tokenizer's files."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath
from transformers import BertTokenizer, CLIPTokenizerFast

from diffusionrl_jax.data.files import read_json, resolve
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models import text_encoders
from diffusionrl_jax.models.folders import weights

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CLIP_TOKENIZER_FILES = ("vocab.json", "merges.txt")
BERT_TOKENIZER_FILES = ("vocab.txt",)


def read_config(path: str, required: Iterable[str] = ()) -> tuple[epath.Path, dict[str, Any]]:
    """Opens the folder and reads its config.json.

    Args:
      path: a folder, or `asset:...`.
      required: the keys that config.json must have.

    Returns:
      The folder and the config.

    Raises:
      FileNotFoundError: there is no such folder or file.
      UserError: a required key is missing.
    """
    folder = resolve(path, "The path of a reward model")
    config = read_json(folder / CONFIG_FILE)
    missing = [key for key in required if key not in config]
    if missing:
        raise UserError(
            f"{folder / CONFIG_FILE} lacks {missing}; see docs/reward_models.md for its keys."
        )
    return folder, config


def read_clip_tokenizer(folder: epath.Path, vocab_size: int) -> CLIPTokenizerFast:
    """Reads CLIP's tokenizer from a reward model's folder.

    Args:
      folder: the folder, from `read_config`.
      vocab_size: how many tokens the model knows. The model takes the last one for the end of a
        text.

    Raises:
      FileNotFoundError: one of the tokenizer's files is missing.
      UserError: the tokenizer belongs to another model.
    """
    _check_tokenizer_files(folder, CLIP_TOKENIZER_FILES, "openai/clip-vit-large-patch14")
    tokenizer = text_encoders.load_clip_tokenizer(folder)
    if len(tokenizer) > vocab_size or tokenizer.eos_token_id != len(tokenizer) - 1:
        raise UserError(
            f"The tokenizer in {folder} has {len(tokenizer)} words and ends texts with number "
            f"{tokenizer.eos_token_id}; the model knows {vocab_size} and takes the last for the "
            "end: use the tokenizer that the model was published with."
        )
    return tokenizer


def read_bert_tokenizer(folder: epath.Path) -> BertTokenizer:
    """Reads BERT's tokenizer from a reward model's folder.

    Args:
      folder: the folder, from `read_config`.

    Raises:
      FileNotFoundError: the tokenizer's file is missing.
    """
    _check_tokenizer_files(folder, BERT_TOKENIZER_FILES, "google-bert/bert-base-uncased")
    return text_encoders.load_tokenizer(folder, BertTokenizer)


def _check_tokenizer_files(folder: epath.Path, names: Sequence[str], published: str) -> None:
    if missing := [name for name in names if not (folder / name).exists()]:
        raise FileNotFoundError(
            f"{folder} lacks {' and '.join(missing)}: copy the tokenizer of {published} there."
        )


def read_params(
    folder: epath.Path,
    template: Mapping,
    *,
    rename: Callable[[str], str] | None = None,
    ignore: Iterable[str] = weights.BUFFERS,
    transform: Callable[[dict], dict] = dict,
) -> dict:
    """Reads model.safetensors as the parameters that `template` describes, float32.

    Args:
      folder: the folder, from `read_config`.
      template: the Flax tree of shapes.
      rename: as in `weights.to_flax`.
      ignore: as in `weights.to_flax`.
      transform: a function that is first applied to the state, where tensors are stored fused.

    Raises:
      FileNotFoundError: the file is missing.
      UserError: a tensor is missing, unknown or misshapen; the error names it.
    """
    file = folder / WEIGHTS_FILE
    state = transform(weights.read_safetensors(file))
    return weights.to_flax(state, template, rename=rename, ignore=ignore, source=str(file))
