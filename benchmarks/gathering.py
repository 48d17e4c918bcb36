"""What an update of some of XL's transformer blocks takes on a slice, gathered whole and by block.

Nothing runs: the programs are compiled ahead of time with libtpu (`pip install libtpu`).

JAX_PLATFORMS=cpu python -m benchmarks.gathering
"""

import diffusers
import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import app, flags
from diffusers.models.attention_flax import FlaxBasicTransformerBlock
from jax.sharding import Mesh

from diffusionrl_jax.costs.compiled import Cost, compile_program, topology_devices
from diffusionrl_jax.distributed.gradients import mean_over_devices
from diffusionrl_jax.distributed.mesh import (
    abstract_arrays,
    batch_sharding,
    gather_parameters,
    make_mesh,
    parameter_sharding,
)
from diffusionrl_jax.distributed.microbatch import mean_over_microbatches
from diffusionrl_jax.distributed.shards import shards
from diffusionrl_jax.models.stable_diffusion.interceptors import interception
from diffusionrl_jax.monitoring.markdown import table

MIB = 2**20
WIDTH, HEADS, TOKENS, TEXT_TOKENS, TEXT_WIDTH = 1280, 20, 64, 77, 2048
DTYPE = jnp.bfloat16

LAYERS = flags.DEFINE_integer("layers", 4, "How many blocks.", 1)
REMAT = flags.DEFINE_string("remat", "blocks", "Rematerialisation.")
TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "All of its chips share the parameters.")


class Blocks(nn.Module):
    """One after another."""

    layers: int

    @nn.compact
    def __call__(self, hidden, text):
        for _ in range(self.layers):
            block = FlaxBasicTransformerBlock(WIDTH, HEADS, WIDTH // HEADS, dtype=DTYPE)
            hidden = block(hidden, text)
        return hidden


def update(mesh: Mesh, layers: int, by_blocks: bool, remat: str) -> tuple[Cost, int]:
    """Compiles a step of gradient descent on two microbatches of one sample a chip.

    Returns:
      What it costs, and the bytes of a whole gradient in float32.
    """
    network = Blocks(layers)
    rows = lambda *shape: jax.ShapeDtypeStruct((2 * mesh.size, *shape), jnp.float32)
    batch = rows(TOKENS, WIDTH), rows(TEXT_TOKENS, TEXT_WIDTH)
    params = jax.eval_shape(network.init, jax.random.key(0), *batch)["params"]
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    gather = shards if by_blocks else gather_parameters

    def loss(params, part):
        with interception(remat=remat, attention="dot_product"):
            output = network.apply({"params": params}, *part)
        return jnp.mean(jnp.square(output.astype(jnp.float32)))

    def gradient(whole, share):
        def of_part(part):
            found = jax.grad(loss)(whole, part)
            return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), found), {}

        return mean_over_microbatches(of_part, share, 2, {})

    def step(params, batch):
        mean = mean_over_devices(gradient, params, mesh, {})
        gradients, _ = mean(gather(params, mesh, DTYPE), batch)
        return jax.tree.map(jnp.subtract, params, gradients)

    arguments = (
        abstract_arrays(params, parameter_sharding(mesh, params)),
        abstract_arrays(batch, batch_sharding(mesh)),
    )
    return compile_program(jax.jit(step, donate_argnums=0).lower(*arguments), quick=True), size


def main(_):
    diffusers.utils.logging.set_verbosity_error()
    devices = topology_devices(TOPOLOGY.value)
    mesh, rows = make_mesh(len(devices), devices), []
    for name, by_blocks in (("whole", False), ("blocks", True)):
        cost, size = update(mesh, LAYERS.value, by_blocks, REMAT.value)
        sent = [f"{found.count} {kind}s" for kind, found in sorted(cost.collectives.items())]
        total = sum(found.bytes for found in cost.collectives.values())
        rows.append([name, f"{cost.temporaries / MIB:.0f}", ", ".join(sent), f"{total / 1e6:.0f}"])
    print(f"{LAYERS.value} blocks on {TOPOLOGY.value}: a whole gradient is {size / MIB:.0f} MiB.\n")
    print(table(["gathered", "temporaries, MiB", "collectives", "MB in them"], rows))


if __name__ == "__main__":
    app.run(main)
