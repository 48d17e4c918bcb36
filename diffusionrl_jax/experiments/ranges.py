"""What a field of a config, or a flag, may hold: a kind refuses a value, and describes itself."""

import dataclasses
import math
import numbers
from typing import Any, Protocol

LONGEST_SHOWN = 80  # Characters of a value.


class Kind(Protocol):
    """What a field may hold."""

    def takes(self, value: Any) -> bool:
        """Whether it may hold a value."""
        ...

    def __str__(self) -> str:
        """What it may hold, after "must be"."""
        ...


def shown(value: Any) -> str:
    """A value as messages show it: as Python writes it, in a line and not longer than one."""
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number.

    Attributes:
      least, most: both may be held.
      zero: what 0 means, which may be held even if it is less than the least; empty if it means
        nothing of its own.
    """

    least: float
    most: float
    zero: str = ""

    def takes(self, value: Any) -> bool:
        """As of `Kind`."""
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return False
        return bool(self.zero and value == 0) or self.least <= value <= self.most  # NaN is neither.

    def __str__(self) -> str:
        return f"a number from {_digits(self.least)} to {_digits(self.most)}{_or_zero(self)}"


@dataclasses.dataclass(frozen=True)
class Whole:
    """A whole number; attributes as of `Number`."""

    least: int
    most: int
    zero: str = ""

    def takes(self, value: Any) -> bool:
        """As of `Kind`."""
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            return False
        return bool(self.zero and value == 0) or self.least <= int(value) <= self.most

    def __str__(self) -> str:
        return f"a whole number from {self.least} to {self.most}{_or_zero(self)}"


def _digits(number: float) -> str:
    return str(int(number)) if number == math.floor(number) else f"{number:g}"


def _or_zero(kind: Number | Whole) -> str:
    if not kind.zero or kind.least <= 0:
        return ""
    return f", or 0, which {kind.zero}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of a few names."""

    names: tuple[str, ...]

    def takes(self, value: Any) -> bool:
        """As of `Kind`."""
        return isinstance(value, str) and value in self.names

    def __str__(self) -> str:
        return f"one of {', '.join(self.names)}"


@dataclasses.dataclass(frozen=True)
class Text:
    """A text.

    Attributes:
      may_be_empty: whether it may have no characters.
    """

    may_be_empty: bool = False

    def takes(self, value: Any) -> bool:
        """As of `Kind`."""
        return isinstance(value, str) and (self.may_be_empty or bool(value))

    def __str__(self) -> str:
        return "a text" if self.may_be_empty else "a text that is not empty"


@dataclasses.dataclass(frozen=True)
class Switch:
    """True or False."""

    def takes(self, value: Any) -> bool:
        """As of `Kind`."""
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "True or False"


@dataclasses.dataclass(frozen=True)
class Several:
    """A tuple or list of values of one kind, or a mapping from names to them.

    Attributes:
      kind: of each.
      least, most: how many.
      by_name: whether it is a mapping.
    """

    kind: Kind
    least: int = 0
    most: int = 2**20
    by_name: bool = False

    def takes(self, value: Any) -> bool:
        """As of `Kind`."""
        if self.by_name:
            # A ConfigDict is no Mapping.
            values = list(value.values()) if hasattr(value, "values") else None
        else:
            values = value if isinstance(value, tuple | list) else None
        return (
            values is not None
            and self.least <= len(values) <= self.most
            and all(map(self.kind.takes, values))
        )

    def __str__(self) -> str:
        what = "a mapping" if self.by_name else "a tuple or list"
        count = f" of {self.least} or more" if self.least else ""
        if self.least == self.most:
            count = f" of {self.least}"
        return f"{what}{count}, each {self.kind}"


@dataclasses.dataclass(frozen=True)
class Made:
    """A group of fields that functions make.

    Attributes:
      by: the functions' names.
    """

    by: str

    def takes(self, value: Any) -> bool:
        """As of `Kind`; what it holds is checked by itself."""
        return hasattr(value, "items")

    def __str__(self) -> str:
        return f"made with {self.by}"


@dataclasses.dataclass(frozen=True)
class Optional:
    """None, or what a kind takes."""

    kind: Kind

    def takes(self, value: Any) -> bool:
        """As of `Kind`."""
        return value is None or self.kind.takes(value)

    def __str__(self) -> str:
        return f"None, or {self.kind}"
