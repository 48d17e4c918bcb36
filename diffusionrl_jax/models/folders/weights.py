"""Turns published PyTorch checkpoints into Flax parameters and back, by one mapping.

The mapping is of names and layouts, and is computed from the Flax side alone: a parameter's path in
the Flax tree determines its PyTorch name, and its leaf name and rank determine its layout. Reading
looks every name up, exporting writes every name out, so that the two are inverse to each other by
construction:

    Flax path                               PyTorch name                        layout
    down_blocks_0/resnets_0/conv1/kernel    down_blocks.0.resnets.0.conv1.weight
                                                                                HWIO <-> OIHW
    mid_block/attentions_0/proj_in/kernel   mid_block.attentions.0.proj_in.weight
                                                                                [I, O] <-> [O, I]
    conv_norm_out/scale                     conv_norm_out.weight                as it is
    token_embedding/embedding               token_embedding.weight              as it is
    blocks_0_to_3/norm/scale                blocks.0.norm.weight, ...           stacked, [4, ...]

Nothing here imports torch, and nothing is ever unpickled.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from etils import epath
from flax import traverse_util

from diffusionrl_jax.data.stored_tensors import (
    FLOATING,
    StoredTensor,
    check_finite,
    write_tensors,
)
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders.tensor_files import read_header, some
from diffusionrl_jax.models.parameters import Parameters, flatten
from diffusionrl_jax.models.stacks import is_stacked, layer_paths, layer_shape

Path = tuple[str, ...]
Rename = Callable[[str], str]
Tensor = np.ndarray | StoredTensor

# Buffers that older checkpoints store beside the weights, and that Flax computes.
BUFFERS = (r"(^|\.)position_ids$",)

WEIGHTS_LEAVES = ("kernel", "scale", "embedding")


def read_safetensors(path, upcast: bool = True) -> dict[str, np.ndarray]:
    """Reads every tensor of a safetensors file.

    Args:
      path: a file, local or remote (`gs://`).
      upcast: whether floating tensors become float32, whatever they are stored as. Integers stay.

    Returns:
      The array of each PyTorch name, in PyTorch's layout.

    Raises:
      FileNotFoundError: there is no such file; where there is a pickled one, it says how to convert
        it.
      UserError: the file is truncated or corrupt, holds a dtype that is not supported, or a number
        that is not finite, or not in float32.
    """
    state = {name: np.asarray(tensor) for name, tensor in read_header(path).items()}
    if upcast:
        state = {
            name: _cast(tensor, np.float32, name, path) if _is_floating(tensor) else tensor
            for name, tensor in state.items()
        }
    return state


def write_safetensors(path, state: Mapping[str, Tensor], dtype: str = "float32") -> None:
    """Writes tensors as a safetensors file that PyTorch's libraries open, one after another.

    Args:
      path: the file to write, local or remote. Its folder is made.
      state: for each PyTorch name the array, in PyTorch's layout, or where it lies in a file.
      dtype: the dtype in which floating tensors are stored: "float32", "float16" or "bfloat16".

    Raises:
      UserError: a finite value is beyond the range of the dtype, or there is no such dtype.
    """
    if dtype not in ("float32", "float16", "bfloat16"):
        raise UserError(f"dtype {dtype!r} is not one of float32, float16, bfloat16.")
    target = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)

    def cast(name: str) -> np.ndarray:
        tensor = np.asarray(state[name])
        if not _is_floating(tensor):
            return tensor
        with np.errstate(over="ignore"):
            stored = tensor.astype(target, copy=False)
        if stored is not tensor and np.isinf(stored).sum() > np.isinf(tensor).sum():
            raise UserError(
                f"Tensor {name!r} has values beyond {dtype}'s range; write bfloat16 or float32."
            )
        return stored

    dtypes = {name: target if _is_floating(one) else one.dtype for name, one in state.items()}
    kinds = {name: (tensor.shape, dtypes[name]) for name, tensor in state.items()}
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # transformers refuses a file without this entry.
    write_tensors(path, kinds, cast, metadata={"format": "pt"})


def pytorch_name(path: Iterable[str]) -> str:
    """Returns the PyTorch name of the parameter at a Flax path.

    `to_out_0` becomes `to_out.0`: Flax cannot hold a list of submodules, and numbers their names.
    `linear_1` stays, since PyTorch calls it so as well.
    """
    *modules, leaf = path
    names = [
        re.sub(r"_(\d+)$", r".\1", module) if not re.fullmatch(r"linear_\d+", module) else module
        for module in modules
    ]
    return ".".join([*names, "weight" if leaf in WEIGHTS_LEAVES else leaf])


def substitution(*pairs: tuple[str, str]) -> Rename:
    """Returns a rename that applies each (pattern, replacement) in turn, as regular expressions."""

    def rename(name: str) -> str:
        for pattern, replacement in pairs:
            name = re.sub(pattern, replacement, name)
        return name

    return rename


@dataclasses.dataclass(frozen=True)
class FusedProjections:
    """Attention's projections of queries, keys and values, where they are stored as one tensor.

    Attributes:
      fused: the one tensor's name, with {module} and {leaf} (weight or bias) in it.
      part: the name of each part, with {module}, {role} and {leaf} in it.
      roles: the parts' roles, in the order in which they are stacked.
    """

    fused: str
    part: str
    roles: tuple[str, str, str]

    @staticmethod
    def _match(template: str, name: str) -> dict[str, str] | None:
        """Returns the module and the leaf of a name that the template fits, or None."""
        pattern = re.escape(template).replace(r"\{module\}", "(?P<module>.*)")
        match = re.fullmatch(pattern.replace(r"\{leaf\}", "(?P<leaf>weight|bias)"), name)
        return match and match.groupdict()

    def split(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the state with each fused tensor as its three parts, which are views."""
        result = {}
        for name, tensor in state.items():
            if fields := self._match(self.fused, name):
                for role, part in zip(self.roles, np.split(tensor, 3), strict=True):
                    result[self.part.format(role=role, **fields)] = part
            else:
                result[name] = tensor
        return result

    def join(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the state with the three parts as one tensor. It is the inverse of `split`."""
        result = dict(state)
        for name in state:
            if fields := self._match(self.part.replace("{role}", self.roles[0]), name):
                names = [self.part.format(role=role, **fields) for role in self.roles]
                parts = [result.pop(part) for part in names]
                result[self.fused.format(**fields)] = np.concatenate(parts)
        return result


def match(
    state: Mapping[str, Tensor],
    template: Parameters,
    *,
    rename: Rename | None = None,
    ignore: Iterable[str] = BUFFERS,
    source: str = "the checkpoint",
) -> dict[Path, Tensor]:
    """Finds which tensor of a PyTorch state is which Flax parameter, and reads none of them.

    Args:
      state: for each PyTorch name the array, in PyTorch's layout, or where it lies in a file.
      template: the Flax tree, whose leaves need only a shape and a dtype (`jax.eval_shape` of the
        init).
      rename: takes the result of `pytorch_name` and returns the checkpoint's name, where a
        checkpoint has names of its own. It must not send two parameters to one name.
      ignore: regular expressions (`re.search`) for tensors that may be left over, such as buffers
        and unused heads.
      source: what errors call the checkpoint, which is its file.

    Returns:
      For each path in the Flax tree the tensor, as it is in the state; for a stack, for the path of
      each of its layers.

    Raises:
      UserError: a tensor is missing, left over, of integers, or of another shape than the model's.
    """
    flat, names = _named(template, rename)
    missing = [name for name in names.values() if name not in state]
    known = set(names.values())
    extra = [
        name
        for name in state
        if name not in known and not any(re.search(pattern, name) for pattern in ignore)
    ]
    if missing:
        hint = f" It has tensors the model does not know: {some(extra)}." if extra else ""
        raise UserError(
            f"{source} lacks {some(missing)}.{hint} Its weights belong to another architecture "
            "than its config.json describes, or to another model: use the folder's own files."
        )
    if extra:
        raise UserError(
            f"{source} has tensors the model does not know: {some(extra)}. Its config.json "
            "describes a smaller or different architecture: use the folder's own files."
        )
    for path, leaf in flat.items():
        expected = _to_pytorch_shape(layer_shape(path, leaf.shape), path[-1])
        for layer in layer_paths(path):
            _check(names[layer], state[names[layer]], expected, source)
    return {path: state[name] for path, name in names.items()}


def _check(name: str, tensor: Tensor, expected: tuple[int, ...], source: Any) -> None:
    """Refuses a tensor of another shape than the model's, or of integers."""
    if _without_window(tensor.shape) != _without_window(expected):
        raise UserError(
            f"Tensor {name!r} in {source} has shape {tuple(tensor.shape)}, but the "
            f"model needs {expected}: config.json and the weights do not belong together."
        )
    if not _is_floating(tensor):
        raise UserError(
            f"Tensor {name!r} in {source} is {tensor.dtype}, not floating point: "
            "quantised weights are not supported, use the float32 or float16 ones."
        )


def to_flax(
    state: Mapping[str, Tensor],
    template: Parameters,
    *,
    rename: Rename | None = None,
    ignore: Iterable[str] = BUFFERS,
    source: str = "the checkpoint",
    shardings: Any = None,
) -> dict[str, Any]:
    """Returns Flax parameters from a PyTorch state, one tensor after another.

    A tensor that lies in a file is read when its turn comes, and dropped once it is placed.

    Args:
      state, template, rename, ignore, source: as in `match`.
      shardings: a tree like the template, of the sharding that each parameter is placed under; None
        keeps all on the host.

    Returns:
      A tree with the template's structure, shapes and dtypes: of `jax.Array`s where there are
      shardings, or else of host arrays, which are views where only the layout differs.

    Raises:
      UserError: as `match`, before anything is read; or a number is not finite, or not in the
        parameter's dtype.
    """
    matched = match(state, template, rename=rename, ignore=ignore, source=source)
    _, names = _named(template, rename)
    places = None if shardings is None else flatten(shardings)
    params = {}
    for path, leaf in flatten(template).items():
        rank = len(layer_shape(path, leaf.shape))
        layers = [
            _read(matched[layer], names[layer], leaf.dtype, path[-1], rank, source)
            for layer in layer_paths(path)
        ]
        value = np.stack(layers) if is_stacked(path) else layers[0]
        if places is not None:
            value = _place(value, places[path])
        params[path] = value
    return traverse_util.unflatten_dict(params)


def _read(tensor: Tensor, name: str, dtype: Any, leaf: str, rank: int, source: Any) -> np.ndarray:
    """Returns a finite tensor in Flax's layout and in a parameter's dtype."""
    value = np.asarray(tensor)
    if not isinstance(tensor, StoredTensor):  # A stored tensor is checked as it is read.
        check_finite(value, name, source)
    return _to_flax_layout(_cast(value, dtype, name, source), leaf, rank)


def _cast(tensor: np.ndarray, dtype: Any, name: str, source: Any) -> np.ndarray:
    """Returns a finite tensor in another dtype, and refuses it if it is not finite there."""
    with np.errstate(over="ignore"):
        cast = tensor.astype(dtype, copy=False)
    is_narrower = cast.dtype.itemsize < tensor.dtype.itemsize
    return check_finite(cast, name, source) if is_narrower else cast


def _place(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """Places an array on the devices. Each process hands its own devices their parts.

    Every process has read the whole array.
    """
    placed = jax.make_array_from_callback(
        value.shape, sharding, lambda index: np.ascontiguousarray(value[index])
    )
    # Otherwise the host would read ahead of the transfers, and hold all that waits for them.
    return placed.block_until_ready()


def to_pytorch(params: Parameters, *, rename: Rename | None = None) -> dict[str, np.ndarray]:
    """Returns the PyTorch state of Flax parameters: the inverse of `to_flax` of the same `rename`.

    Args:
      params: the Flax tree, of arrays that this process can read whole.
      rename: as in `to_flax`.

    Returns:
      For each PyTorch name the host array in PyTorch's layout, a view where only the layout
      differs.
    """
    flat, names = _named(params, rename)
    flat = jax.device_get(flat)
    state = {}
    for path, value in flat.items():
        layers = np.asarray(value) if is_stacked(path) else np.asarray(value)[None]
        for layer, value in zip(layer_paths(path), layers, strict=True):
            if path[-1] == "kernel":
                value = value.transpose(_to_pytorch_axes(value.ndim))
            state[names[layer]] = value
    return state


def _named(tree: Parameters, rename: Rename | None):
    """Returns the flattened tree, and the checkpoint's name of every path, or layer's path, in it.

    Raises:
      UserError: the renaming sends two parameters to one name.
    """
    flat = flatten(tree)
    names = {layer: pytorch_name(layer) for path in flat for layer in layer_paths(path)}
    if rename is not None:
        names = {path: rename(name) for path, name in names.items()}
    if len(set(names.values())) != len(names):
        taken = sorted(names.values())
        twice = [
            name for name, following in zip(taken, taken[1:], strict=False) if name == following
        ]
        raise UserError(f"The renaming sends two parameters to one name: {some(twice)}.")
    return flat, names


def _to_pytorch_axes(rank: int) -> tuple[int, ...]:
    """Returns the axes that turn Flax's [*window, in, out] into PyTorch's [out, in, *window].

    Arrays of rank 1 stay.
    """
    return (rank - 1, rank - 2, *range(rank - 2)) if rank >= 2 else tuple(range(rank))


def _to_pytorch_shape(shape: tuple[int, ...], leaf: str) -> tuple[int, ...]:
    if leaf != "kernel":
        return shape
    return tuple(shape[axis] for axis in _to_pytorch_axes(len(shape)))


def _without_window(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape in which a linear layer and a 1x1 convolution are the same."""
    return tuple(shape[:2]) if len(shape) == 4 and tuple(shape[2:]) == (1, 1) else tuple(shape)


def _is_floating(tensor: Tensor) -> bool:
    return tensor.dtype.type in FLOATING


def _to_flax_layout(tensor: np.ndarray, leaf: str, rank: int) -> np.ndarray:
    """Returns a PyTorch tensor in Flax's layout.

    Args:
      tensor: the tensor, in PyTorch's layout.
      leaf: the last part of the Flax parameter's path.
      rank: the rank of the Flax parameter.
    """
    if leaf != "kernel" or tensor.ndim < 2:
        return tensor
    # Some checkpoints store a projection (proj_in, the VAE's attention) as a linear layer, and
    # others store the same one as a 1x1 convolution: the model's own choice decides.
    if rank == 2 and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
        tensor = tensor[:, :, 0, 0]
    elif rank == 4 and tensor.ndim == 2:
        tensor = tensor[:, :, None, None]
    return tensor.transpose(*range(2, tensor.ndim), 1, 0)
