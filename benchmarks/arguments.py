"""What several benchmarks' command lines have in common.

A script, as `python benchmarks/race.py`, finds the modules of its own folder. Those that import
`configs` import this first, which lets Python look in the repository's root, too.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Collection

ROOT = str(pathlib.Path(__file__).resolve().parents[1])
if ROOT not in sys.path:
    sys.path.insert(1, ROOT)


def names_of(kind: str, known: Collection[str]) -> Callable[[str], list[str]]:
    """Returns what reads names that are separated by commas, and refuses those that are not known.

    Args:
      kind: what the names are of, for the error.
      known: the names that there are.
    """

    def read(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(
                f"no {kind} {', '.join(sorted(unknown))}; there are {', '.join(known)}"
            )
        return names

    return read


def count(text: str) -> int:
    """Reads a whole number of 1 or more, and refuses anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of 1 or more")
    return int(text)
