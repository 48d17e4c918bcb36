"""The kinds of values that a field of a config, or a flag, may hold.

A kind refuses a value, and describes itself.
"""

import dataclasses
import math
import numbers
from typing import Any, Protocol


class Kind(Protocol):
    """What a field may hold."""

    def takes(self, value: Any) -> bool:
        """Returns whether the field may hold a value."""
        ...

    def __str__(self) -> str:
        """Returns what the field may hold, in words that follow "must be"."""
        ...


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number.

    Attributes:
      least, most: the bounds, both of which may be held.
      zero: what 0 means. 0 may then be held even if it is below the least. It is empty if 0 means
        nothing of its own.
    """

    least: float
    most: float
    zero: str = ""

    def takes(self, value: Any) -> bool:
        """Returns whether a value is such a number; see `Kind`."""
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return False
        # No comparison with NaN holds.
        number: Any = value
        return bool(self.zero and number == 0) or self.least <= number <= self.most

    def __str__(self) -> str:
        return f"a number from {_digits(self.least)} to {_digits(self.most)}{_or_zero(self)}"


@dataclasses.dataclass(frozen=True)
class Whole:
    """A whole number.

    Attributes:
      least, most, zero: as in `Number`.
    """

    least: int
    most: int
    zero: str = ""

    def takes(self, value: Any) -> bool:
        """Returns whether a value is such a whole number; see `Kind`."""
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            return False
        return bool(self.zero and value == 0) or self.least <= int(value) <= self.most

    def __str__(self) -> str:
        return f"a whole number from {self.least} to {self.most}{_or_zero(self)}"


def _digits(number: float) -> str:
    return str(int(number)) if number == math.floor(number) else f"{number:g}"


def _or_zero(kind: Number | Whole) -> str:
    """Returns what is said of 0 where it lies outside the bounds, and may be held."""
    if not kind.zero or kind.least <= 0:
        return ""
    return f", or 0, which {kind.zero}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of a few names.

    Attributes:
      names: the names.
    """

    names: tuple[str, ...]

    def takes(self, value: Any) -> bool:
        """Returns whether a value is one of the names; see `Kind`."""
        return isinstance(value, str) and value in self.names

    def __str__(self) -> str:
        return f"one of {', '.join(name or repr(name) for name in self.names)}"


@dataclasses.dataclass(frozen=True)
class Text:
    """A text.

    Attributes:
      may_be_empty: whether it may have no characters.
    """

    may_be_empty: bool = False

    def takes(self, value: Any) -> bool:
        """Returns whether a value is such a text; see `Kind`."""
        return isinstance(value, str) and (self.may_be_empty or bool(value))

    def __str__(self) -> str:
        return "a text" if self.may_be_empty else "a text that is not empty"


@dataclasses.dataclass(frozen=True)
class Switch:
    """True or False."""

    def takes(self, value: Any) -> bool:
        """Returns whether a value is True or False; see `Kind`."""
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "True or False"


@dataclasses.dataclass(frozen=True)
class Several:
    """A tuple or list of values of one kind, or a mapping from names to such values.

    Attributes:
      kind: the kind of each value.
      least, most: how many values there may be.
      by_name: whether it is a mapping.
    """

    kind: Kind
    least: int = 0
    most: int = 2**20
    by_name: bool = False

    def takes(self, value: Any) -> bool:
        """Returns whether a value holds values of the kind; see `Kind`."""
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
        """Returns whether a value is a group of fields. What it holds is checked by itself."""
        return hasattr(value, "items")

    def __str__(self) -> str:
        return f"made with {self.by}"


@dataclasses.dataclass(frozen=True)
class Optional:
    """None, or a value of another kind.

    Attributes:
      kind: the other kind.
    """

    kind: Kind

    def takes(self, value: Any) -> bool:
        """Returns whether a value is None or of the kind; see `Kind`."""
        return value is None or self.kind.takes(value)

    def __str__(self) -> str:
        return f"None, or {self.kind}"
