"""Reads how a config names data: `KIND:NAME?option=value&option=value`, one line that reads aloud.

The kind and the options may be left out, so that a path alone is a source too. Where a path itself
has characters that mean something here, what is there on the disk under the longer name is meant.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence

from etils import epath

from diffusionrl_jax.data.files import as_path, is_there, matching
from diffusionrl_jax.mistakes import UserError

# Options whose values are paths.
PATHS = ("words", "data_dir", "file")
# Options begin here. A path may have question marks before, and a value may have some after.
OPTIONS = re.compile(r"\?(?=[a-z_]+=)")


@dataclasses.dataclass(frozen=True)
class Source:
    """A source as its name describes it.

    Attributes:
      text: the whole name, for messages.
      kind: what stands before the first colon; "" for a path.
      name: what stands between the kind and the options.
      options: the options' values, by name.
    """

    text: str
    kind: str
    name: str
    options: Mapping[str, str]

    def check_options(self, known: Collection[str]) -> None:
        """Refuses options that this kind of source does not have.

        Args:
          known: the options that it has.

        Raises:
          UserError: there is another.
        """
        if unknown := sorted(set(self.options) - set(known)):
            choices = f"only {sorted(known)}" if known else "none"
            raise UserError(f"{self.text!r}: the options {unknown} are unknown; use {choices}.")

    def number(self, option: str) -> int:
        """Returns the value of an option that is a count, 0 if it is not there.

        Raises:
          UserError: it is not a whole number of 0 or more.
        """
        value = self.options.get(option, "0")
        if not (value.isascii() and value.isdigit()):
            raise UserError(f"{self.text!r}: {option}={value} must be a whole number, 0 or more.")
        return int(value)


def parse(text: str, kinds: Collection[str]) -> Source:
    """Takes the name of a source apart.

    Args:
      text: a name such as `tfds:laion?text=caption` or `gs://bucket/prompts.parquet?held_out=2000`.
      kinds: the kinds that are known. Anything else before a colon belongs to the path.

    Raises:
      UserError: there is no name, or an option is not of the form option=value.
    """
    kind, _, rest = text.partition(":")
    kind, rest = (kind, rest) if kind in kinds else ("", text)
    name, tail = _split_options(rest)
    options, parts = {}, list(filter(None, tail.split("&")))
    while parts:
        part, *parts = parts
        option, equals, value = part.partition("=")
        if option in PATHS:
            value, parts = _longest_path(value, parts)
        if not (option and equals and value):
            raise UserError(f"{text!r}: cannot read the option {part!r}: write option=value.")
        if option in options:
            raise UserError(f"{text!r} says {option} twice: leave one out.")
        options[option] = value
    if not name:
        raise UserError(f"{text!r} names nothing: see docs/data.md for what can be named.")
    return Source(text, kind, name, options)


def _split_options(text: str) -> tuple[str, str]:
    """Returns the name, and the options as they are written."""
    questions = [match.start() for match in re.finditer(r"\?", text)]
    begins = [len(text), *reversed(questions)]
    there = [begin for begin in begins if questions and is_there(text[:begin])]
    if there:
        begin = there[0]
    elif match := OPTIONS.search(text):
        begin = match.start()
    else:
        begin = begins[min(1, len(questions))]
    return text[:begin], text[begin + 1 :]


def _longest_path(value: str, parts: Sequence[str]) -> tuple[str, list[str]]:
    """Returns a path with as much of what follows as belongs to it, and the rest."""
    for count in range(len(parts), 0, -1):
        if is_there(longer := "&".join([value, *parts[:count]])):
            return longer, list(parts[count:])
    return value, list(parts)


def find_files(pattern: str) -> list[epath.Path]:
    """Returns the files of a path, in the order of their names.

    Args:
      pattern: a path, local or `gs://`. Its last part may have `*`, unless there is a file of that
        very name.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it is a folder, or nothing can be there, as `files.as_path` says.
    """
    path = as_path(pattern, "The path of a file")
    if "*" in path.name and not path.exists():
        if not (found := matching(path.parent, path.name)):
            raise FileNotFoundError(f"No file matches {pattern}: mend the path.")
        return found
    if not path.exists():
        raise FileNotFoundError(f"There is no file {pattern}: mend the path.")
    if path.is_dir():
        raise UserError(f"{pattern} is a folder: name a file in it, or several with *.")
    return [path]


def decode_text(text: bytes, place: str) -> str:
    """Decodes a text from UTF-8.

    Raises:
      UserError: it is not UTF-8; the message begins with `place`.
    """
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place}: byte {error.start + 1} is not UTF-8 ({error.reason}): save it as UTF-8."
        ) from None
