"""Tells what a person can mend apart from what is this project's own fault."""

import difflib
from collections.abc import Iterable
from typing import Any

LONGEST_SHOWN = 80  # So many characters of a value are shown.


class UserError(ValueError):
    """A mistake of the one who typed, wrote or named something: one line says it, and the mend.

    Programs show it without a traceback. Whatever else is raised is a fault of ours, and its
    traceback shows where it arose.
    """


def shown(value: Any) -> str:
    """Returns a value as messages show it: as Python writes it, in one line that is not long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def suggestion(name: str, known: Iterable[str]) -> str:
    """Returns what is said of an unknown name, after it: the likeliest that was meant, or all.

    Args:
      name: the unknown name.
      known: the names that are known.
    """
    known = sorted(map(str, known))
    if close := difflib.get_close_matches(name, known, 1):
        return f"did you mean {close[0]}?"
    return f"there are {', '.join(known)}." if known else "it has no fields."
