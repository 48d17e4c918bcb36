"""Reads the files of a tokenizer's folder, whichever version of transformers has saved it."""

import json
from typing import Any

from etils import epath

from diffusionrl_jax.data.files import read_json
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders.fields import TEXT, Kind, check_fields, is_whole, without_nulls

VOCABULARY, MERGES, WHOLE_TOKENIZER = "vocab.json", "merges.txt", "tokenizer.json"
SAY_TOKENS = ("tokenizer_config.json", "special_tokens_map.json")
EXTRA = "extra_special_tokens"
# With one of these, transformers 4 leaves a T5's tokenizer.json unread and makes another of its
# spiece.model, which takes a package of its own. What they say is in tokenizer.json already.
FROM_SLOW = ("add_prefix_space", "from_slow")
LEAST_LENGTH = 2  # The start and the end of a text.


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, dict) and isinstance(value.get("content"), str)
    )


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_token, value))


def _are_named(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_token, value.values()))


def _are_numbered(value: Any) -> bool:
    return _are_named(value) and all(number.isdecimal() for number in value)


_KINDS = {
    "added_tokens_decoder": Kind("an object of numbers and tokens", _are_numbered),
    "additional_special_tokens": Kind("a list of tokens", _are_tokens),
    EXTRA: Kind("an object or a list of tokens", _are_named),
    "tokenizer_class": TEXT,
    **dict.fromkeys(
        ("bos_token", "eos_token", "pad_token", "unk_token"),
        Kind("a text, or an object with its content", _is_token),
    ),
    # A tokenizer without a limit states 10^30, which JSON may hold as a real number.
    "model_max_length": Kind(
        f"a whole number of {LEAST_LENGTH} or more",
        lambda value: is_whole(value, LEAST_LENGTH) or value == 1e30,
    ),
}


def read_files(folder: epath.Path) -> dict[str, bytes]:
    """Reads the files of a tokenizer's folder.

    Args:
      folder: a folder, local or remote.

    Returns:
      The content of each JSON and text file, by the file's name.

    Raises:
      UserError: a file does not hold what it should; it names the file and the field.
    """
    found = [entry for entry in folder.iterdir() if entry.suffix in (".json", ".txt")]
    return {
        file.name: _read_special(file) if file.name in SAY_TOKENS else file.read_bytes()
        for file in found
    }


def _read_special(file: epath.Path) -> bytes:
    """Returns a file that says which tokens are special, as transformers 4 takes it."""
    fields = without_nulls(read_json(file))
    fields = {name: value for name, value in fields.items() if name not in FROM_SLOW}
    if isinstance(fields.get(EXTRA), list):  # transformers 5 saves them so.
        fields["additional_special_tokens"] = fields.pop(EXTRA)
    check_fields(fields, _KINDS, file)
    return json.dumps(fields).encode()


def read_clip_tokenizer_files(folder: epath.Path) -> dict[str, bytes]:
    """Reads a CLIP tokenizer's files, with the two that say what its words are.

    transformers 5 saves the words in tokenizer.json alone. Earlier versions save them in vocab.json
    and merges.txt, which are read where both are there, in place of tokenizer.json.

    Args:
      folder: a folder, local or remote.

    Returns:
      The content of each file that is read, as `read_files` returns it, with vocab.json and
      merges.txt.

    Raises:
      FileNotFoundError: a file does not exist.
      UserError: a file does not hold what it should; it names the file and the field.
    """
    files = read_files(folder)
    if VOCABULARY in files and MERGES in files:
        _check_words(folder / VOCABULARY, read_json(folder / VOCABULARY))
        _check_merges(folder / MERGES)
        # Where it is there, transformers takes the words from tokenizer.json.
        return {name: content for name, content in files.items() if name != WHOLE_TOKENIZER}
    if WHOLE_TOKENIZER not in files:
        absent = VOCABULARY if VOCABULARY not in files else MERGES
        raise FileNotFoundError(
            f"{folder / absent} does not exist, nor does {WHOLE_TOKENIZER}; the folder is "
            "incomplete: copy or download it again."
        )
    vocabulary, merges = _from_whole(folder / WHOLE_TOKENIZER)
    return {**files, VOCABULARY: vocabulary, MERGES: merges}


def _check_words(file: epath.Path, words: Any) -> None:
    """Refuses a vocabulary that does not give each of its words a number of its own."""
    is_mapping = isinstance(words, dict) and all(is_whole(value, 0) for value in words.values())
    if not is_mapping or not words or len(set(words.values())) < len(words):
        raise UserError(
            f"{file}: the vocabulary must have a word or more, each with a whole number of its "
            "own: copy or download the file again."
        )


def _check_merges(file: epath.Path) -> None:
    """Refuses a merges.txt that does not have a pair in each line after the first."""
    try:
        lines = file.read_text().split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 ({error}); copy it again.") from None
    for number, line in enumerate(lines[1:], start=2):
        if line and len(line.split()) != 2:
            raise UserError(
                f"{file}: line {number} is {line[:80]!r}, and must be two parts of a word."
            )


def _from_whole(file: epath.Path) -> tuple[bytes, bytes]:
    """Returns the contents of vocab.json and merges.txt that a tokenizer.json amounts to."""
    fields = read_json(file)
    model = fields.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise UserError(f"{file}: model is not of type BPE, of which CLIP's tokenizers are.")
    added = fields.get("added_tokens") or []
    try:
        words = model["vocab"] | {token["content"]: token["id"] for token in added}
        # Before tokenizers 0.20, pairs were saved as one text.
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        lines = [f"{first} {second}" for first, second in pairs]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: model.vocab, model.merges or added_tokens are missing or are not what a "
            f"tokenizer has ({error!r}): copy or download the file again."
        ) from None
    _check_words(file, words)
    return json.dumps(words).encode(), "\n".join(["#version: 0.2", *lines, ""]).encode()
