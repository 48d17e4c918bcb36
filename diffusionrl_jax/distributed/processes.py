"""What processes tell each other."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def gather(values: np.ndarray) -> np.ndarray:
    """Every process' values, [processes, ...]; a barrier where there are several."""
    if jax.process_count() == 1:
        return values[None]
    return np.asarray(multihost_utils.process_allgather(values))


def true_everywhere(flag: bool) -> bool:
    """Whether the flag is true in every process; a barrier where there are several."""
    return bool(gather(np.array(flag)).all())
