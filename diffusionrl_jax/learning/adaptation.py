"""What of the denoiser is trained: all of it, or LoRA's factors."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.distributed.mesh import gather_parameters, parameter_sharding
from diffusionrl_jax.distributed.shards import gather_shards, shards
from diffusionrl_jax.models.lora import Lora
from diffusionrl_jax.models.parameters import Parameters, flatten


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """How the denoiser's parameters come from those that are trained.

    Attributes:
      lora: which kernels get factors; None if all of the denoiser is trained.
      by_blocks: whether the denoiser gathers its parameters itself, a block at a time, in updates.
    """

    lora: Lora | None = None
    by_blocks: bool = False

    def denoiser(self, params: Parameters, base: Parameters | None) -> Parameters:
        """The denoiser's parameters from those that are trained, and what factors change."""
        if self.lora is None:
            return params
        assert base is not None  # Factors change it.
        return self.lora.merge(base, gather_shards(params))

    def gather(
        self, params: Parameters, base: Parameters | None, mesh: Mesh, dtype: jnp.dtype
    ) -> tuple[Parameters, Parameters | None]:
        """The arguments of `denoiser`, whole on every device, in what is computed in.

        By blocks split parameters are `Shard`s, which the denoiser gathers where it uses them.
        """
        if self.by_blocks and self.lora is None:
            return shards(params, mesh, dtype), None
        if self.by_blocks:
            return shards(params, mesh), shards(base, mesh, dtype)
        if self.lora is None:
            return gather_parameters(params, mesh, dtype), None
        assert base is not None  # Factors change it.
        changed = self.lora.kernels(base).keys()
        base = gather_parameters(base, mesh, dtype, uncast=changed)
        return gather_parameters(params, mesh), base


def make_lora(config: Config) -> Lora | None:
    """What `config.lora` describes; None if its rank is 0 and all of the denoiser is trained.

    Raises:
      UserError: a field that does not fit.
    """
    fields = config.lora
    return Lora(fields.rank, fields.alpha, tuple(fields.targets)) if fields.rank else None


def make_merge(
    mesh: Mesh, base: Parameters | None, lora: Lora | None
) -> Callable[[Parameters], Parameters]:
    """A function from what is trained to the denoiser's, sharded alike, outside of training.

    Args:
      mesh: of the parameters.
      base: the denoiser's; None without LoRA. Those that it leaves alone are passed on, not
        copied.
      lora: None if all of the denoiser is trained.
    """
    if lora is None:
        return lambda params: params
    assert base is not None  # Factors change it.
    flat = flatten(base)
    kernels = traverse_util.unflatten_dict(lora.kernels(base))
    merge = jax.jit(lora.merge, out_shardings=parameter_sharding(mesh, kernels))
    return lambda factors: traverse_util.unflatten_dict(flat | flatten(merge(kernels, factors)))
