"""Adapts a denoiser by low-rank factors (Hu et al., 2106.09685), as a view of its parameter tree.

What is trained is a tree of pairs of factors, in the places of the kernels that they change:

    .../to_q/kernel                      [in, out]          frozen
    .../to_q/lora_A/kernel               [in, rank]         trained
    .../to_q/lora_B/kernel               [rank, out]        trained

`Lora.merge` turns both into a tree like the denoiser's own. The networks know nothing of it, and
whatever trains a tree of parameters trains the factors. The first factor of a convolution has the
convolution's window, and the second is 1 by 1, as in PEFT, so that the project's mapping of names
yields PEFT's names. The factors of a stack of layers (`stacks.py`) are stacked as well.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from diffusionrl_jax.distributed.shards import add
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders import weights
from diffusionrl_jax.models.parameters import Parameters, flatten
from diffusionrl_jax.models.stacks import layer_paths, layer_shape

Path = tuple[str, ...]

DOWN, UP = "lora_A", "lora_B"
KERNEL = "kernel"
FILE_NAME = "pytorch_lora_weights.safetensors"


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which kernels get factors, and of which size.

    Attributes:
      rank: the rank of the change to each kernel.
      alpha: the change is alpha / rank times the product of the factors.
      targets: the names of PyTorch's modules, or the ends of the names: "to_q" is every query
        projection.

    Raises:
      UserError: the rank is below 1, alpha is not above 0, or there are no targets.
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
        """The number by which the product of the factors is multiplied."""
        return self.alpha / self.rank

    def kernels(self, base: Parameters) -> dict[Path, Any]:
        """Returns the kernels that get factors, by their paths in the tree.

        Args:
          base: the denoiser's parameters; only their names are used.

        Raises:
          UserError: no module of the denoiser ends in one of the targets; it says what its modules
            end in.
        """
        flat = flatten(base)
        names = {
            path: [weights.pytorch_name(layer).removesuffix(".weight") for layer in layers]
            for path in flat
            if path[-1] == KERNEL and (layers := layer_paths(path))
        }
        all_names = [name for of_path in names.values() for name in of_path]
        for target in self.targets:
            if not any(_ends_in(name, target) for name in all_names):
                known = sorted({_end(name) for name in all_names})
                raise UserError(
                    f"lora.targets names {target!r}, but the denoiser has no such module: its "
                    f"modules end in {', '.join(known)}."
                )
        return {path: flat[path] for path, of_path in names.items() if self._targets(of_path)}

    def _targets(self, layers: Sequence[str]) -> bool:
        """Returns whether the modules of a stack's layers get factors: all of them, or none."""
        wanted = {any(_ends_in(name, target) for target in self.targets) for name in layers}
        if len(wanted) > 1:
            raise UserError(
                f"lora.targets names some of {layers[0]} to {layers[-1]}, and not others: blocks "
                "that are alike are adapted together, so name all, or the end that they have in "
                "common."
            )
        return wanted == {True}

    def init(self, base: Parameters, seed: int) -> dict[str, Any]:
        """Returns factors that change nothing yet: the first uniform as in PEFT, the second zero.

        Args:
          base: the denoiser's parameters; only their shapes are used.
          seed: the seed that the first factors are drawn with.

        Returns:
          A tree of float32 factors.

        Raises:
          UserError: as `kernels`.
        """
        kernels = self.kernels(base)
        factors = {}
        keys = jax.random.split(jax.random.key(seed), len(kernels))
        for ((*path, _), kernel), key in zip(kernels.items(), keys, strict=True):
            *window, inputs, outputs = layer_shape((*path, KERNEL), kernel.shape)
            layers = kernel.shape[: kernel.ndim - len(window) - 2]
            ones = (1,) * len(window)
            draw = _uniform(len(layers))
            down, up = (*layers, *window, inputs, self.rank), (*layers, *ones, self.rank, outputs)
            factors[*path, DOWN, KERNEL] = draw(key, down, jnp.float32)
            factors[*path, UP, KERNEL] = jnp.zeros(up, jnp.float32)
        return traverse_util.unflatten_dict(factors)

    def merge(self, base: Parameters, factors: Parameters) -> dict[str, Any]:
        """Returns the denoiser's parameters with the factors' change: base + scale * down @ up.

        Args:
          base: the denoiser's parameters, or a part of their tree that holds the kernels to change.
            Where a kernel is a `Shard`, the device's own part of it is changed.
          factors: the factors, from `init`.

        Returns:
          A tree of the base's structure, shapes and dtypes.
        """
        merged, flat = flatten(base), flatten(factors)
        for *path, kind, _ in flat:
            if kind == DOWN:
                kernel = merged[*path, KERNEL]
                # By default a TPU would multiply in bfloat16, and what is exported would differ.
                change = jnp.matmul(
                    flat[*path, DOWN, KERNEL],
                    flat[*path, UP, KERNEL],
                    precision=jax.lax.Precision.HIGHEST,
                )
                merged[*path, KERNEL] = add(kernel, self.scale * change)
        return traverse_util.unflatten_dict(merged)

    def to_pytorch(self, factors: Parameters, denoiser: str) -> dict[str, np.ndarray]:
        """Returns the factors as diffusers' `load_lora_weights` takes them from a file.

        The scale is multiplied into the second factors, since a file without an alpha is read with
        one that equals the rank.

        Args:
          factors: arrays that this process can read whole.
          denoiser: the denoiser's name in the pipeline, with which the names in the file begin.

        Returns:
          A float32 host array for each PyTorch name.
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
        """Returns the factors of a file. It is the inverse of `to_pytorch`.

        Args:
          state: an array for each PyTorch name.
          base: the denoiser's parameters; only their shapes are used.
          denoiser: the denoiser's name in the pipeline, as in `to_pytorch`.
          source: what errors call the file.

        Raises:
          UserError: a tensor is missing, left over or of another shape; it names the tensor.
        """
        template = jax.eval_shape(lambda: self.init(base, seed=0))
        unscaled = {
            name: tensor / np.float32(self.scale) if f".{UP}." in name else tensor
            for name, tensor in state.items()
        }
        rename = lambda name: f"{denoiser}.{name}"
        return weights.to_flax(unscaled, template, rename=rename, source=source)


def _uniform(stacked: int) -> Callable[..., jax.Array]:
    """Returns what draws a first factor whose first `stacked` axes are of layers."""
    layers = tuple(range(stacked))
    return jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=layers)


def _ends_in(name: str, target: str) -> bool:
    """Returns whether the last parts of a module's name are the target."""
    return f".{name}".endswith(f".{target}")


def _end(name: str) -> str:
    """Returns the last part of a module's name that is not a number, and what follows it."""
    found = re.search(r"[^.]*[^.\d][^.]*(\.\d+)*$", name)
    assert found is not None  # No module has a number alone for its name.
    return found[0]
