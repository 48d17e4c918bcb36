"""Says what the fields of a folder's JSON may hold, so that errors name the file and the field."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from diffusionrl_jax.mistakes import UserError, shown

# No network is larger than this, and to build one would take for ever.
MOST, MOST_LAYERS = 10**6, 1000


@dataclasses.dataclass(frozen=True)
class Kind:
    """The values that a field may hold.

    Attributes:
      text: what they are, in words that follow "must be".
      holds: takes whatever JSON may hold, and returns whether it is one of the values.
    """

    text: str
    holds: Callable[[Any], bool]


def is_whole(value: Any, least: int = 1) -> bool:
    """Returns whether a value is a whole number of `least` or more; true and false are none."""
    return type(value) is int and value >= least


def is_number(value: Any) -> bool:
    """Returns whether a value is a finite number; true and false are none."""
    return type(value) in (int, float) and math.isfinite(value)


def _is_list_of(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(holds, value))


WHOLE = Kind(f"a whole number of 1 to {MOST}", lambda value: is_whole(value) and value <= MOST)
LAYERS = Kind(
    f"a whole number of 1 to {MOST_LAYERS}", lambda value: is_whole(value) and value <= MOST_LAYERS
)
WHOLE_OR_ZERO = Kind("a whole number of 0 or more", lambda value: is_whole(value, 0))
NUMBER = Kind("a finite number", is_number)
ABOVE_ZERO = Kind("a finite number above 0", lambda value: is_number(value) and value > 0)
BETWEEN_ZERO_AND_ONE = Kind(
    "a number above 0 and below 1", lambda value: is_number(value) and 0 < value < 1
)
BETWEEN_ZERO_AND_ONE_EACH = Kind(
    "a list of numbers above 0 and below 1",
    lambda value: _is_list_of(value, BETWEEN_ZERO_AND_ONE.holds),
)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a text", lambda value: isinstance(value, str))
WHOLES = Kind(
    f"a list of whole numbers of 1 to {MOST}", lambda value: _is_list_of(value, WHOLE.holds)
)
WHOLE_OR_WHOLES = Kind(
    f"a whole number of 1 to {MOST}, or a list of them",
    lambda value: WHOLE.holds(value) or WHOLES.holds(value),
)
WHOLES_OR_NONE = Kind(
    "a list of whole numbers of 0 or more",
    lambda value: isinstance(value, list | tuple) and all(map(WHOLE_OR_ZERO.holds, value)),
)
TEXTS = Kind("a list of texts", lambda value: _is_list_of(value, TEXT.holds))


def without_nulls(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that are not null: null is as if the field were not there."""
    return {field: value for field, value in config.items() if value is not None}


def check_fields(config: Mapping[str, Any], kinds: Mapping[str, Kind], source: object) -> None:
    """Refuses a field that holds something of another kind.

    Absent fields and nulls are passed over.

    Args:
      config: a JSON object.
      kinds: what each of its fields may hold.
      source: the file that the object is from, for the message.

    Raises:
      UserError: a field holds something else; it names the source, the field and what it may hold.
    """
    for field, kind in kinds.items():
        value = config.get(field)
        if value is not None and not kind.holds(value):
            raise UserError(f"{source}: {field} is {shown(value)}, and must be {kind.text}.")


def check_choices(
    config: Mapping[str, Any], choices: Mapping[str, Collection[str]], source: object
) -> None:
    """Refuses a field that holds none of the texts that are known for it.

    The arguments and the error are those of `check_fields`, with each field's texts for its kind.
    """
    for field, known in choices.items():
        if (value := config.get(field)) is not None and value not in known:
            raise UserError(f"{source}: {field} {value!r} is not one of {', '.join(known)}.")
