"""Low-rank adaptation of a denoiser (Hu et al., arXiv 2106.09685) as a view of its parameter tree.

What is trained is a tree of pairs of factors in the places of the kernels that they change:

    .../to_q/kernel                      [in, out]          frozen
    .../to_q/lora_A/kernel               [in, rank]         trained
    .../to_q/lora_B/kernel               [rank, out]        trained

`Lora.merge` turns both into a tree like the denoiser's own. The networks know nothing of it, and
whatever trains a tree of parameters trains the factors. A convolution's first factor has its
window, the second is 1 by 1, as in PEFT: the project's mapping of names gives PEFT's names.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from diffusionrl_jax.distributed.shards import add
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.parameters import Parameters, flatten

Path = tuple[str, ...]

DOWN, UP = "lora_A", "lora_B"
KERNEL = "kernel"
FILE_NAME = "pytorch_lora_weights.safetensors"


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which kernels get factors, and of which size.

    Attributes:
      rank: of the change to each kernel.
      alpha: the change is alpha / rank times the product of the factors.
      targets: names of PyTorch's modules, or the ends of them: "to_q" is every query projection.

    Raises:
      UserError: a rank below 1, an alpha that is not above 0, or no targets.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self):
        if self.rank < 1:
            raise UserError(f"lora.rank={self.rank} must be 1 or more, or 0 for no LoRA.")
        if not self.alpha > 0:
            raise UserError(f"lora.alpha={self.alpha} must be above 0: lora.rank is usual.")
        if not self.targets:
            raise UserError("lora.targets is empty: name modules, such as to_q.")

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha / self.rank

    def kernels(self, base: Parameters) -> dict[Path, Any]:
        """The kernels that get factors, by path.

        Raises:
          UserError: a target that no module of the denoiser ends in; says what there is.
        """
        flat = flatten(base)
        names = {
            path: weights.pytorch_name(path).removesuffix(".weight")
            for path in flat
            if path[-1] == KERNEL
        }
        for target in self.targets:
            if not any(_ends_in(name, target) for name in names.values()):
                known = sorted({_end(name) for name in names.values()})
                raise UserError(
                    f"lora.targets names {target!r}, but the denoiser has no such module: its "
                    f"modules end in {', '.join(known)}."
                )
        return {
            path: flat[path]
            for path, name in names.items()
            if any(_ends_in(name, target) for target in self.targets)
        }

    def init(self, base: Parameters, seed: int) -> dict[str, Any]:
        """Factors that change nothing yet: the first uniform as in PEFT, the second zero.

        Args:
          base: the denoiser's parameters; only shapes are used.
          seed: of the first factors.

        Returns:
          A tree of float32 factors.

        Raises:
          UserError: as `kernels`.
        """
        kernels = self.kernels(base)
        draw = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        factors = {}
        keys = jax.random.split(jax.random.key(seed), len(kernels))
        for ((*path, _), kernel), key in zip(kernels.items(), keys, strict=True):
            *window, inputs, outputs = kernel.shape
            ones = (1,) * len(window)
            factors[*path, DOWN, KERNEL] = draw(key, (*window, inputs, self.rank), jnp.float32)
            factors[*path, UP, KERNEL] = jnp.zeros((*ones, self.rank, outputs), jnp.float32)
        return traverse_util.unflatten_dict(factors)

    def merge(self, base: Parameters, factors: Parameters) -> dict[str, Any]:
        """The denoiser's parameters with the factors' change: base + scale * down @ up.

        Args:
          base: the denoiser's parameters, or a part of its tree that holds the kernels to change;
            of a `Shard` a device's own part is changed.
          factors: from `init`.

        Returns:
          A tree of the base's structure, shapes and dtypes.
        """
        merged, flat = flatten(base), flatten(factors)
        for *path, kind, _ in flat:
            if kind == DOWN:
                kernel = merged[*path, KERNEL]
                # A TPU would by default multiply in bfloat16, and export something else.
                change = jnp.matmul(
                    flat[*path, DOWN, KERNEL],
                    flat[*path, UP, KERNEL],
                    precision=jax.lax.Precision.HIGHEST,
                )
                merged[*path, KERNEL] = add(kernel, self.scale * change)
        return traverse_util.unflatten_dict(merged)

    def to_pytorch(self, factors: Parameters, denoiser: str) -> dict[str, np.ndarray]:
        """The factors as diffusers' `load_lora_weights` takes them from a file.

        The scale is multiplied into the second factors, for a file without an alpha is read with
        one that equals the rank.

        Args:
          factors: arrays that this process can read whole.
          denoiser: its name in the pipeline, with which the file's names begin.

        Returns:
          PyTorch name -> float32 host array.
        """
        state = weights.to_pytorch(factors, rename=lambda name: f"{denoiser}.{name}")
        return {
            name: np.float32(self.scale) * tensor if f".{UP}." in name else tensor
            for name, tensor in state.items()
        }

    def to_flax(
        self,
        state: Mapping[str, np.ndarray],
        base: Parameters,
        denoiser: str,
        source: str = "the LoRA file",
    ) -> dict[str, Any]:
        """The factors of a file: the inverse of `to_pytorch`.

        Args:
          state: PyTorch name -> array.
          base: the denoiser's parameters; only shapes are used.
          denoiser: as of `to_pytorch`.
          source: what errors call the state.

        Raises:
          UserError: a tensor is missing, left over or misshapen; names it.
        """
        template = jax.eval_shape(lambda: self.init(base, seed=0))
        unscaled = {
            name: tensor / np.float32(self.scale) if f".{UP}." in name else tensor
            for name, tensor in state.items()
        }
        rename = lambda name: f"{denoiser}.{name}"
        return weights.to_flax(unscaled, template, rename=rename, source=source)


def _ends_in(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _end(name: str) -> str:
    """The last part of a module's name that is not a number, and what follows it."""
    found = re.search(r"[^.]*[^.\d][^.]*(\.\d+)*$", name)
    assert found is not None  # No module has a number alone for its name.
    return found[0]
