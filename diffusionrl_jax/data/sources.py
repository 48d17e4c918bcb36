"""How a config names data: `KIND:NAME?option=value&option=value`, one line that reads aloud.

The kind and the options may lack: a path alone is a source too.
"""

import dataclasses
from collections.abc import Collection, Mapping

from etils import epath


@dataclasses.dataclass(frozen=True)
class Source:
    """A source as its name says it.

    Attributes:
      text: the whole name, for messages.
      kind: before the first colon; "" for a path.
      name: between the kind and the options.
      options: after the last question mark.
    """

    text: str
    kind: str
    name: str
    options: Mapping[str, str]

    def check_options(self, known: Collection[str]) -> None:
        """Refuses options that this kind of source does not have.

        Raises:
          ValueError: there is one.
        """
        if unknown := sorted(set(self.options) - set(known)):
            choices = f"only {sorted(known)}" if known else "none"
            raise ValueError(f"{self.text!r}: the options {unknown} are unknown; use {choices}.")

    def number(self, option: str) -> int:
        """An option that counts, 0 if it is not there.

        Raises:
          ValueError: it is not a whole number of 0 or more.
        """
        value = self.options.get(option, "0")
        if not (value.isascii() and value.isdigit()):
            raise ValueError(f"{self.text!r}: {option}={value} must be a whole number, 0 or more.")
        return int(value)


def parse(text: str, kinds: Collection[str]) -> Source:
    """Takes the name of a source apart.

    Args:
      text: as `tfds:laion?text=caption` or `gs://bucket/prompts.parquet?held_out=2000`.
      kinds: those that are known; anything else before a colon belongs to the path.

    Raises:
      ValueError: there is no name, or an option is not of the form option=value.
    """
    kind, _, rest = text.partition(":")
    kind, rest = (kind, rest) if kind in kinds else ("", text)
    name, question, tail = rest.rpartition("?")
    if not question:
        name, tail = rest, ""
    options = {}
    for part in filter(None, tail.split("&")):
        option, equals, value = part.partition("=")
        if not (option and equals and value):
            raise ValueError(f"{text!r}: cannot read the option {part!r}: write option=value.")
        if option in options:
            raise ValueError(f"{text!r} says {option} twice: leave one out.")
        options[option] = value
    if not name:
        raise ValueError(f"{text!r} names nothing: see docs/data.md for what can be named.")
    return Source(text, kind, name, options)


def find_files(pattern: str) -> list[epath.Path]:
    """The files of a path, in the order of their names.

    Args:
      pattern: a path, local or `gs://`; its last part may have `*`.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is a folder.
    """
    path = epath.Path(pattern)
    try:
        path.parent.exists()
    except ImportError as error:  # Of the library of a kind of bucket.
        raise ValueError(f"Cannot read {pattern}: {error}; of gs://, pip install gcsfs.") from None
    if "*" in path.name:
        found = sorted(path.parent.glob(path.name)) if path.parent.exists() else []
        if not found:
            raise FileNotFoundError(f"No file matches {pattern}: mend the path.")
        return found
    if not path.exists():
        raise FileNotFoundError(f"There is no file {pattern}: mend the path.")
    if path.is_dir():
        raise ValueError(f"{pattern} is a folder: name a file in it, or several with *.")
    return [path]


def decode_text(text: bytes, place: str) -> str:
    """UTF-8 text.

    Raises:
      ValueError: it is not UTF-8; the message begins with `place`.
    """
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{place}: byte {error.start + 1} is not UTF-8 ({error.reason}): save it as UTF-8."
        ) from None
