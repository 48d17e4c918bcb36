"""Dot-product attention, by XLA or by a Pallas kernel that never holds the probability matrix."""

import jax
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import Mesh, PartitionSpec

ATTENTION = ("auto", "dot_product", "splash")
SPLASH_TOKENS = 1024  # below, the probabilities are small and XLA's fusions are as good
LANES = 128  # the kernel's blocks of tokens are multiples of a TPU register's width
LARGEST_BLOCK = 512  # 512 x 512 float32 logits are 1 MiB of the 16 MiB of a core's fast memory


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    scale: float,
    attention: str = "auto",
    mesh: Mesh | None = None,
) -> jax.Array:
    """softmax(scale * query @ key) @ value of each head, with the softmax in float32.

    Args:
      query: [batch, query tokens, heads, head size].
      key, value: [batch, tokens, heads, head size], of the query's dtype.
      scale: of the logits.
      attention: "dot_product" is `jax.nn.dot_product_attention`; "splash" the Pallas kernel
        `jax.experimental.pallas.ops.tpu.splash_attention` where `takes_splash`, interpreted where
        the mesh is not of TPUs; "auto" is "splash" on a mesh of TPUs, else "dot_product".
      mesh: the devices that the program is compiled for, over which the batch, or else the heads,
        are split; XLA cannot split a kernel by itself. None means "auto" is "dot_product".

    Returns:
      Of the query's shape and dtype.

    Raises:
      ValueError: "splash" without a mesh, or an attention that does not exist.
    """
    if choose(attention, mesh) == "splash" and takes_splash(query.shape, key.shape):
        return _splash(query, key, value, scale, mesh)
    return jax.nn.dot_product_attention(query, key, value, scale=scale)


def choose(attention: str, mesh: Mesh | None) -> str:
    """Resolves "auto", and checks the rest; see `attend`."""
    if attention not in ATTENTION:
        raise ValueError(f"attention {attention!r} is not one of {ATTENTION}.")
    if attention == "splash" and mesh is None:
        raise ValueError("attention 'splash' needs the mesh that the program is compiled for.")
    if attention == "auto":
        return "splash" if mesh is not None and _is_tpu(mesh) else "dot_product"
    return attention


def takes_splash(query: tuple[int, ...], key: tuple[int, ...]) -> bool:
    """Whether attention of these shapes, [batch, tokens, heads, head size], suits the kernel.

    It is for as many queries as keys, 1024 or more, in whole blocks of 128.
    """
    return query == key and query[1] >= SPLASH_TOKENS and query[1] % LANES == 0


def block_size(tokens: int) -> int:
    """The largest multiple of 128 up to 512 that divides the tokens."""
    return max(size for size in range(LANES, LARGEST_BLOCK + 1, LANES) if tokens % size == 0)


def partition(batch: int, heads: int, mesh: Mesh) -> PartitionSpec:
    """How [batch, heads, ...] is split: each mesh axis over the batch if it divides, or the heads.

    An axis that divides neither computes everything in each of its places.
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


def _splash(query, key, value, scale, mesh):
    batch, tokens, heads, _ = query.shape
    spec = partition(batch, heads, mesh)
    size = block_size(tokens)
    sizes = splash_attention.BlockSizes(
        **dict.fromkeys(
            ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"),
            size,
        )
    )

    def local(query, key, value):
        kernel = splash_attention.make_splash_mha(
            splash_attention.MultiHeadMask(
                [splash_attention.FullMask((tokens, tokens))] * query.shape[1]
            ),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            interpret=not _is_tpu(mesh),
        )
        return jax.vmap(kernel)(query, key, value)

    # The kernel does not scale, and its backward pass is of the scaled query.
    arguments = (array.swapaxes(1, 2) for array in (query * scale, key, value))
    if not jax.sharding.get_abstract_mesh().manual_axes:  # else the arrays are a device's own
        local = jax.shard_map(
            local, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False
        )
    return local(*arguments).swapaxes(1, 2)
