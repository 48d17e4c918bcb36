"""Which parameters of the denoiser are trained: all of them, or LoRA's factors."""

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
    """How the denoiser's parameters follow from the parameters that are trained.

    Attributes:
      lora: says which kernels get factors. None means that all of the denoiser is trained.
      by_blocks: whether the networks gather their split parameters themselves, one block at a time.
    """

    lora: Lora | None = None
    by_blocks: bool = False

    def denoiser(self, params: Parameters, base: Parameters | None) -> Parameters:
        """Returns the denoiser's parameters.

        Args:
          params: the parameters that are trained: the denoiser's own, or LoRA's factors.
          base: the denoiser's parameters that the factors change. It is needed with LoRA only.
        """
        if self.lora is None:
            return params
        assert base is not None  # LoRA's factors change it.
        return self.lora.merge(base, gather_shards(params))

    def gather(
        self, params: Parameters, base: Parameters | None, mesh: Mesh, dtype: jnp.dtype
    ) -> tuple[Parameters, Parameters | None]:
        """Returns the arguments of `denoiser`, whole on every device and cast to `dtype`.

        The kernels that LoRA changes, and its factors, keep their own dtype. Where `by_blocks` is
        true, nothing is gathered here: split parameters become `Shard`s, and the denoiser gathers
        them where it uses them.

        Args:
          params: the parameters that are trained, as in `denoiser`.
          base: the denoiser's parameters that the factors change, as in `denoiser`.
          mesh: the devices over which the parameters are split.
          dtype: what the denoiser computes in.

        Returns:
          `params` and `base` as `denoiser` takes them; the second is None without LoRA.
        """
        if self.by_blocks and self.lora is None:
            return shards(params, mesh, dtype), None
        if self.by_blocks:
            return shards(params, mesh), shards(base, mesh, dtype)
        if self.lora is None:
            return gather_parameters(params, mesh, dtype), None
        assert base is not None  # LoRA's factors change it.
        changed = self.lora.kernels(base).keys()
        base = gather_parameters(base, mesh, dtype, uncast=changed)
        return gather_parameters(params, mesh), base


def make_lora(config: Config) -> Lora | None:
    """Makes what `config.lora` describes, or None if its rank is 0: all is then trained.

    Raises:
      UserError: a field has a value that LoRA cannot have.
    """
    fields = config.lora
    return Lora(fields.rank, fields.alpha, tuple(fields.targets)) if fields.rank else None


def make_merge(
    mesh: Mesh, base: Parameters | None, lora: Lora | None
) -> Callable[[Parameters], Parameters]:
    """Returns a function from the trained parameters to the denoiser's.

    It is for use outside of training; its result is split over the devices as in training.

    Args:
      mesh: the devices over which the parameters are split.
      base: the denoiser's parameters that LoRA's factors change; None without LoRA. Parameters that
        no factor changes are passed on and not copied.
      lora: the factors' description. None means that all of the denoiser is trained; the function
        then returns its argument.
    """
    if lora is None:
        return lambda params: params
    assert base is not None  # LoRA's factors change it.
    flat = flatten(base)
    kernels = traverse_util.unflatten_dict(lora.kernels(base))
    merge = jax.jit(lora.merge, out_shardings=parameter_sharding(mesh, kernels))
    return lambda factors: traverse_util.unflatten_dict(flat | flatten(merge(kernels, factors)))
