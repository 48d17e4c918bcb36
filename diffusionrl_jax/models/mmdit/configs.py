"""Makes the transformer from what its folder says of it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusionrl_jax.models.mmdit.joint import JointTransformer
from diffusionrl_jax.models.mmdit.positions import middle


def make_joint_transformer(
    config: Mapping[str, Any],
    table: np.ndarray,
    size: tuple[int, int],
    dtype: Any,
    recomputes: bool = False,
) -> JointTransformer:
    """Makes Stable Diffusion 3's transformer.

    Args:
      config: the contents of its config.json.
      table: the table of places, [1, most * most, width].
      size: the rows and columns of latents.
      dtype, recomputes: as in `JointTransformer`.

    Raises:
      UserError: the latents are larger than the table.
    """
    patch = config["patch_size"]
    rows, columns = (side // patch for side in size)
    return JointTransformer(
        layers=config["num_layers"],
        heads=config["num_attention_heads"],
        head_size=config["attention_head_dim"],
        channels=config["in_channels"],
        patch_size=patch,
        text_width=config["joint_attention_dim"],
        pooled_width=config["pooled_projection_dim"],
        normalises=config.get("qk_norm") is not None,
        dual=frozenset(config.get("dual_attention_layers") or ()),
        positions=middle(table, config["pos_embed_max_size"], rows, columns),
        dtype=dtype,
        recomputes=recomputes,
    )
