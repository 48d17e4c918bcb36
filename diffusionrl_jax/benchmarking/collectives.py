"""What a compiled program sends between its devices."""

import math
import re

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
# "%name = result kind(...)", or "kind-start(...)" with its "kind-done(...)" further down.
INSTRUCTION = re.compile(rf"= (\S.*?) ({'|'.join(KINDS)})(-start)?\(")
ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")
# These start with a tuple of what goes in, as much that comes out, and perhaps u32[] for TPUs.
STARTED_WITH_OPERANDS = ("all-gather", "collective-permute")
CONTEXT = ("u", "32", "")


def collectives(text: str) -> list[tuple[str, int]]:
    """The collectives of a compiled program, each once however often a loop repeats it.

    Args:
      text: of `compiled.as_text()`.

    Returns:
      Of each its kind, one of `KINDS`, and the bytes of its result on one device.
    """
    found = []
    for result, kind, start in INSTRUCTION.findall(text):
        arrays = ARRAY.findall(result)
        if start and kind in STARTED_WITH_OPERANDS:
            arrays = [array for array in arrays if array != CONTEXT]
            arrays = arrays[len(arrays) // 2 :]
        found.append((kind, sum(_bytes(*array) for array in arrays)))
    return found


def _bytes(letter: str, bits: str, lengths: str) -> int:
    """Of an array such as bf16[2,3] or pred[]."""
    elements = math.prod(int(length) for length in lengths.split(",") if length)
    return math.ceil(elements * (int(bits) if bits else 8) / 8)
