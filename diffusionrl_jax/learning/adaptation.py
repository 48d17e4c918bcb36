"""What of the UNet is trained: all of it, or LoRA's factors."""

from collections.abc import Callable

import jax
import ml_collections
from flax import traverse_util
from jax.sharding import Mesh

from diffusionrl_jax.distributed.mesh import parameter_sharding
from diffusionrl_jax.models.lora import Lora
from diffusionrl_jax.models.parameters import Parameters


def make_lora(config: ml_collections.ConfigDict) -> Lora | None:
    """What `config.lora` describes; None if its rank is 0 and all of the UNet is trained.

    Raises:
      ValueError: a field that does not fit.
    """
    fields = config.get("lora")
    if fields is None or not fields.rank:  # The first runs' config.json has no such field.
        return None
    return Lora(fields.rank, fields.alpha, tuple(fields.targets))


def make_merge(
    mesh: Mesh, unet_params: Parameters, lora: Lora | None
) -> Callable[[Parameters], Parameters]:
    """A function from what is trained to the UNet's parameters, sharded alike, outside of training.

    Args:
      mesh: of the parameters.
      unet_params: of the base. Those that LoRA leaves alone are passed on, not copied.
      lora: None if all of the UNet is trained.
    """
    if lora is None:
        return lambda params: params
    flat = traverse_util.flatten_dict(unet_params)
    kernels = traverse_util.unflatten_dict(lora.kernels(unet_params))
    merge = jax.jit(lora.merge, out_shardings=parameter_sharding(mesh, kernels))
    return lambda factors: traverse_util.unflatten_dict(
        flat | traverse_util.flatten_dict(merge(kernels, factors))
    )
