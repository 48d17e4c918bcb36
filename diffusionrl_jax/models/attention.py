"""Computes dot-product attention, by XLA or by a kernel that never holds the probability matrix.

The kernel is Pallas' on TPUs and cuDNN's on GPUs.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import Mesh, PartitionSpec
from jax.typing import ArrayLike

from diffusionrl_jax.distributed.mesh import on_one_device
from diffusionrl_jax.mistakes import UserError

ATTENTION = ("auto", "dot_product", "splash", "cudnn")
# With fewer tokens the probabilities are small, and XLA's fusions are as good.
KERNEL_TOKENS = 1024
# The kernel's blocks of tokens are multiples of the width of a TPU's register.
LANES = 128
# Other numbers of tokens are filled up to multiples of this: with blocks of 128 alone, the kernel
# would spend more on starting them.
FILLED_UP = 256
BIAS_COLUMNS = 2
# 512 x 512 float32 logits take 1 MiB of the 16 MiB of a core's fast memory.
LARGEST_BLOCK = 512
# The name of what the Pallas kernel's backward pass asks for beside its inputs, for policies of
# `jax.checkpoint`: with it kept, the kernel is not run again.
RESIDUALS = "attention_residuals"
# What cuDNN's flash attention and its gradients take on every GPU that has them: heads of 8 to 128
# numbers in steps of 8, on GPUs of Ampere's compute capability or newer. Hopper takes larger heads.
CUDNN_HEAD_STEP, CUDNN_LARGEST_HEAD = 8, 128
CUDNN_COMPUTE_CAPABILITY = 8.0


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    scale: float,
    attention: str = "auto",
    mesh: Mesh | None = None,
    key_bias: ArrayLike | None = None,
    fills_up: bool = False,
) -> jax.Array:
    """Computes softmax(scale * query @ key + bias) @ value for each head, the softmax in float32.

    Args:
      query: [batch, query tokens, heads, head size].
      key, value: [batch, tokens, heads, head size], of the query's dtype.
      scale: the number by which the logits are multiplied.
      attention: how it is computed. "dot_product" is `jax.nn.dot_product_attention`. "splash" is
        the Pallas kernel `jax.experimental.pallas.ops.tpu.splash_attention`, interpreted where the
        mesh is not of TPUs. "cudnn" is cuDNN's flash attention. "auto" is "splash" on a mesh of
        TPUs, "cudnn" on a mesh of GPUs that have it, and "dot_product" elsewhere. Shapes and dtypes
        that a kernel does not suit (`takes_splash`, `takes_cudnn`) are computed by "dot_product".
      mesh: the devices that the program is compiled for. The batch, or else the heads, are split
        over them, since XLA cannot split a kernel by itself. With None, "auto" is "dot_product".
      key_bias: a number for each key that is added to its logits, float32 [tokens]; None means
        zeros. With one, attention is not computed by "cudnn".
      fills_up: whether the Pallas kernel also takes numbers of queries and keys that differ, or are
        no whole blocks, by filling them up.

    Returns:
      An array of the query's shape and dtype.

    Raises:
      UserError: as `choose`.
    """
    chosen = choose(attention, mesh)
    if chosen == "splash" and takes_splash(query.shape, key.shape, fills_up):
        # The kernel does not scale, and its backward pass is that of the scaled query.
        query = query * scale
        if key_bias is None:
            return _splash(query, key, value, mesh)
        query, key, value = _with_bias(query, key, value, jnp.asarray(key_bias))
        return _splash(query, key, value, mesh)[..., :-BIAS_COLUMNS]
    if key_bias is not None:
        bias = jnp.asarray(key_bias)[None, None, None]
        return jax.nn.dot_product_attention(query, key, value, bias, scale=scale)
    if chosen == "cudnn" and takes_cudnn(query.shape, key.shape, query.dtype):
        return _cudnn(query, key, value, scale, mesh)
    return jax.nn.dot_product_attention(query, key, value, scale=scale)


def choose(attention: str, mesh: Mesh | None) -> str:
    """Returns the attention that is meant, with "auto" resolved as `attend` says.

    Raises:
      UserError: there is no such attention, a kernel is asked for without a mesh, or "cudnn" is
        asked for on devices other than GPUs that have it.
    """
    if attention not in ATTENTION:
        raise UserError(f"attention {attention!r} is not one of {ATTENTION}.")
    if attention in ("splash", "cudnn") and mesh is None:
        raise UserError(f"attention {attention!r} needs the mesh that is compiled for.")
    if attention == "cudnn" and mesh is not None and not _has_cudnn(mesh):
        raise UserError(
            "attention 'cudnn' needs NVIDIA GPUs of compute capability "
            f"{CUDNN_COMPUTE_CAPABILITY} or newer, and the devices are "
            f"{mesh.devices.flat[0].device_kind!r}: choose 'auto'."
        )
    if attention == "auto":
        if mesh is not None and _is_tpu(mesh):
            return "splash"
        return "cudnn" if mesh is not None and _has_cudnn(mesh) else "dot_product"
    return attention


def takes_splash(query: tuple[int, ...], key: tuple[int, ...], fills_up: bool = False) -> bool:
    """Returns whether attention of these shapes suits the Pallas kernel.

    It suits as many queries as keys, 1024 or more, in whole blocks of 128.

    Args:
      query, key: the arrays' shapes, [batch, tokens, heads, head size].
      fills_up: whether any numbers of 1024 or more suit it.
    """
    if fills_up:
        return min(query[1], key[1]) >= KERNEL_TOKENS
    return query == key and query[1] >= KERNEL_TOKENS and query[1] % LANES == 0


def takes_cudnn(query: tuple[int, ...], key: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Returns whether attention of these shapes and this dtype suits cuDNN's kernel.

    It suits as many queries as keys, 1024 or more, in bfloat16 or float16, and heads whose size is
    a multiple of 8 up to 128, as `jax.nn.dot_product_attention` demands for its implementation
    "cudnn".

    Args:
      query, key: the arrays' shapes, as in `takes_splash`.
      dtype: the arrays' dtype.
    """
    is_long = query == key and query[1] >= KERNEL_TOKENS
    fits = query[3] % CUDNN_HEAD_STEP == 0 and query[3] <= CUDNN_LARGEST_HEAD
    return is_long and fits and dtype in (jnp.bfloat16, jnp.float16)


def block_size(tokens: int) -> int:
    """Returns the largest multiple of 128, up to 512, that divides the number of tokens."""
    return max(size for size in range(LANES, LARGEST_BLOCK + 1, LANES) if tokens % size == 0)


def partition(batch: int, heads: int, mesh: Mesh) -> PartitionSpec:
    """Returns how arrays [batch, heads, ...] are split over a mesh.

    Each axis of the mesh splits the batch if it divides it, or else the heads if it divides these.
    Where an axis divides neither, each of its places computes everything.
    """
    over_batch, over_heads = [], []
    for axis, ways in mesh.shape.items():
        if batch % ways == 0:
            over_batch.append(axis)
            batch //= ways
        elif heads % ways == 0:
            over_heads.append(axis)
            heads //= ways
    return PartitionSpec(tuple(over_batch), tuple(over_heads))


def _is_tpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "tpu"


def _has_cudnn(mesh: Mesh) -> bool:
    """Returns whether a mesh is of GPUs that have cuDNN's flash attention.

    AMD's GPUs have other names for their capabilities.
    """
    device = mesh.devices.flat[0]
    capability = str(getattr(device, "compute_capability", ""))
    is_number = re.fullmatch(r"\d+\.\d+", capability) is not None
    is_recent = is_number and float(capability) >= CUDNN_COMPUTE_CAPABILITY
    return device.platform in ("gpu", "cuda") and is_recent


def _on_each_device(
    local: Callable[..., jax.Array], mesh: Mesh, arrays: tuple[jax.Array, ...]
) -> jax.Array:
    """Applies `local` to each device's own rows and heads of [batch, tokens, heads, head size]."""
    if not on_one_device():
        batch, _, heads, _ = arrays[0].shape
        rows, columns = partition(batch, heads, mesh)
        spec = PartitionSpec(rows, None, columns)
        local = jax.shard_map(
            local, mesh=mesh, in_specs=(spec,) * len(arrays), out_specs=spec, check_vma=False
        )
    return local(*arrays)


def _cudnn(query, key, value, scale, mesh):
    local = partial(jax.nn.dot_product_attention, scale=scale, implementation="cudnn")
    return _on_each_device(local, mesh, (query, key, value))


def _with_bias(query, key, value, bias):
    """Returns queries and keys whose products have the keys' bias in them, and values to match.

    A bias is two more products: in half precision one number would round it.
    """
    bias = bias[None, :, None, None]
    rounded = bias.astype(key.dtype)
    columns = jnp.concatenate([rounded, (bias - rounded).astype(key.dtype)], axis=-1)

    def widened(array, more):
        more = jnp.broadcast_to(more, (*array.shape[:-1], BIAS_COLUMNS)).astype(array.dtype)
        return jnp.concatenate([array, more], axis=-1)

    return widened(query, jnp.ones(1)), widened(key, columns), widened(value, jnp.zeros(1))


def _filled(tokens: int) -> int:
    """Returns to how many tokens so many are filled up for the kernel."""
    return tokens if tokens % LANES == 0 else -(-tokens // FILLED_UP) * FILLED_UP


def _splash(query, key, value, mesh):
    queries, keys = query.shape[1], key.shape[1]
    padded, padded_keys = _filled(queries), _filled(keys)
    block_q, block_kv = block_size(padded), block_size(padded_keys)
    sizes = splash_attention.BlockSizes(
        **dict.fromkeys(("block_q", "block_q_dkv", "block_q_dq"), block_q),
        **dict.fromkeys(("block_kv", "block_kv_dkv", "block_kv_dq"), block_kv),
    )
    # No query sees the keys that are filled in. Those that are filled in themselves see the others,
    # and what they see is dropped.
    segments = None
    if padded_keys > keys:
        segments = splash_attention.SegmentIds(
            jnp.zeros(padded, jnp.int32), (jnp.arange(padded_keys) >= keys).astype(jnp.int32)
        )

    def local(*arrays):
        query, key, value = (
            jnp.pad(array, ((0, 0), (0, length - array.shape[1]), (0, 0), (0, 0))).swapaxes(1, 2)
            for array, length in zip(arrays, (padded, padded_keys, padded_keys), strict=True)
        )
        kernel = splash_attention.make_splash_mha(
            splash_attention.MultiHeadMask(
                [splash_attention.FullMask((padded, padded_keys))] * query.shape[1]
            ),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name=RESIDUALS,
            interpret=not _is_tpu(mesh),
        )
        # Without residuals the kernel returns one array.
        seen = jax.vmap(kernel, (0, 0, 0, None))(query, key, value, segments)
        return cast(jax.Array, seen).swapaxes(1, 2)[:, :queries]

    return _on_each_device(local, mesh, (query, key, value))
