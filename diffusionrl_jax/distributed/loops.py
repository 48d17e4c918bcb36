"""A loop whose number of turns only its arguments tell, and how often it turns on average."""

import re

import jax

# Both a jaxpr and a compiled program's text tell a loop by the scope that it stands in.
SCOPE = re.compile(r"turns_on_average_(\d+)_(\d+)")


def loop(first, last, body, carry, average: float):
    """Does what `jax.lax.fori_loop` does, and leaves word of its turns to who counts operations.

    Args:
      first, last, body, carry: as in `jax.lax.fori_loop`.
      average: how often it turns on average, to hundredths.
    """
    whole, hundredths = divmod(round(100 * average), 100)
    with jax.named_scope(f"turns_on_average_{whole}_{hundredths:02}"):
        return jax.lax.fori_loop(first, last, body, carry)


def average_turns(scope: str) -> float | None:
    """Returns how often the loop in a scope turns on average; None if nothing is said of it.

    Args:
      scope: names from the outermost one on, divided by slashes. The last one is that of the loop.
    """
    found = SCOPE.fullmatch(scope.rpartition("/")[2])
    return found and int(found[1]) + int(found[2]) / 100
