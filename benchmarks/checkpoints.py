"""What saving, restoring and checking a checkpoint costs: `python benchmarks/checkpoints.py`.

A state of random numbers over all devices, each array as large as a UNet's larger ones. The digests
are those that every save writes and every restoration compares.
"""

import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from diffusionrl_jax.command_line import start
from diffusionrl_jax.distributed.digests import digests
from diffusionrl_jax.distributed.mesh import make_mesh
from diffusionrl_jax.runs.checkpoints import Checkpoints

GIGABYTES = flags.DEFINE_float("gigabytes", 0.5, "The state's size.", 0.05)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Of each, of which the median counts.", 1)
ARRAY = (1280, 3, 3, 1280)


def timed(function: Callable, *arguments) -> float:
    begun = time.monotonic()
    jax.block_until_ready(function(*arguments))
    return time.monotonic() - begun


def main(_):
    start.start_devices()
    sharding = NamedSharding(make_mesh(jax.device_count()), P("fsdp"))
    count = round(GIGABYTES.value * 1e9 / np.prod(ARRAY) / 4) or 1
    draw = jax.jit(lambda key: jax.random.normal(key, ARRAY, jnp.float32), out_shardings=sharding)
    state = {str(number): draw(jax.random.key(number)) for number in range(count)}
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
    )
    size = sum(leaf.nbytes for leaf in state.values()) / 1e9
    times = {"save, until it is complete": [], "restore and check": [], "digests alone": []}
    digests(state)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(folder, keep_last=1)

        def save(step: int) -> None:
            checkpoints.save(step, state)
            checkpoints.wait()

        for step in range(ROUNDS.value):
            times["save, until it is complete"].append(timed(save, step))
            times["restore and check"].append(timed(checkpoints.restore, shapes))
            times["digests alone"].append(timed(digests, state))
        checkpoints.close()
    print(f"{size:.2f} GB on {jax.device_count()} {jax.devices()[0].device_kind} devices")
    for name, seconds in times.items():
        median, low, high = statistics.median(seconds), min(seconds), max(seconds)
        print(f"{name:28} {median / size:6.2f} s/GB ({low / size:.2f} to {high / size:.2f})")


if __name__ == "__main__":
    app.run(main)
