"""The UNet's blocks: what is computed again for the backward pass, and what is gathered together.

Wherever a block's parameters are `distributed.shards.Shard`s, they are gathered where the block is
used, in the forward and again in the backward pass, whatever rematerialisation is asked for.
"""

import flax.linen as nn
import jax
from diffusers.models.attention_flax import FlaxBasicTransformerBlock
from diffusers.models.resnet_flax import FlaxResnetBlock2D
from diffusers.models.unets.unet_2d_blocks_flax import (
    FlaxCrossAttnDownBlock2D,
    FlaxCrossAttnUpBlock2D,
    FlaxDownBlock2D,
    FlaxUNetMidBlock2DCrossAttn,
    FlaxUpBlock2D,
)

from diffusionrl_jax.distributed.shards import gather_shards, has_shards
from diffusionrl_jax.models.rematerialisation import POLICIES

BLOCKS = (FlaxBasicTransformerBlock, FlaxResnetBlock2D)
LEVELS = (
    FlaxCrossAttnDownBlock2D,
    FlaxCrossAttnUpBlock2D,
    FlaxDownBlock2D,
    FlaxUNetMidBlock2DCrossAttn,
    FlaxUpBlock2D,
)
# The kinds of layers that have parameters outside of any block: the first and last convolutions,
# those between levels, the time's embedding, a transformer's projections.
LAYERS = (nn.Conv, nn.Dense, nn.GroupNorm, nn.LayerNorm)
# For each choice, the modules that are computed again in the backward pass. One checkpoint around
# the whole UNet would save nothing: its backward pass would hold what "none" holds.
RECOMPUTED = {"none": (), "blocks": BLOCKS, "full": (*LEVELS, *BLOCKS)}


def rematerialisation(remat: str):
    """Returns an interceptor that recomputes modules, and gathers parameters.

    Of blocks and layers that are not recomputed and whose parameters are shards, everything is kept
    for the backward pass but the gathered parameters.

    Args:
      remat: what is computed again, one of `POLICIES`: it says which modules, and what they keep.
    """
    kinds = RECOMPUTED[remat]
    # Inside `nn.remat` the module is called again, and intercepted again: its path here tells so.
    within = set()

    def interceptor(next_function, args, kwargs, context):
        module = context.module
        if context.method_name != "__call__" or not isinstance(module, (*kinds, *BLOCKS, *LAYERS)):
            return next_function(*args, **kwargs)
        path, recomputes = module.path, isinstance(module, kinds)
        gathers = isinstance(module, (*BLOCKS, *LAYERS)) and has_shards(module.variables)
        if path in within or not (recomputes or gathers):
            return next_function(*args, **kwargs)
        static = {name: value for name, value in kwargs.items() if isinstance(value, bool)}
        arrays = {name: value for name, value in kwargs.items() if name not in static}

        def call(module, args, arrays):
            within.add(path)
            try:
                return module(*args, **arrays, **static)
            finally:
                within.discard(path)

        policy = POLICIES[remat if recomputes else "none"]
        function = _gathering(call) if gathers else call
        return nn.remat(function, policy=policy)(module, args, arrays)

    return interceptor


def _gathering(call):
    """Returns a module's call that gathers the module's parameters first, all at once.

    It waits with that until the arrays that the module is called with are there.
    """

    def gathered(module, args, arrays):
        first = jax.tree.leaves((args, arrays))[0]
        gather = lambda params: gather_shards(params, after=first)
        return nn.map_variables(call, "params", trans_in_fn=gather)(module, args, arrays)

    return gathered
