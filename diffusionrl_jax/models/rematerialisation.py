"""What a block of a denoiser keeps for its backward pass beside its inputs."""

import jax

from diffusionrl_jax.distributed.shards import keeps_all_but_gathered
from diffusionrl_jax.models.attention import RESIDUALS

# The choices of `config.remat`, as policies of `jax.checkpoint`. With "none" nothing is computed
# again, and with "blocks" all is but the Pallas kernel's attention: of what a block computes, that
# takes longest for each number of its result.
POLICIES = {
    "none": keeps_all_but_gathered,
    "blocks": jax.checkpoint_policies.save_only_these_names(RESIDUALS),
    "full": jax.checkpoint_policies.nothing_saveable,
}
