"""The methods of learning, by the name that a config gives them in `config.algorithm.name`."""

from diffusionrl_jax.algorithms import (
    centred_reward,
    draft_k,
    forward_process,
    offline_preference,
    policy_gradient,
    raft,
    refl,
    reward_gradient,
    reward_weighted,
)
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.learning.algorithm import Needs

# Name -> module or `Method`. Its `needs` takes the method's own config fields, its `make` a config
# and a process.
ALGORITHMS = {
    "policy_gradient": policy_gradient,
    "reward_weighted": reward_weighted,
    "raft": raft,
    "draft_lv": reward_gradient,
    "refl": refl,
    "draft_k": draft_k,
    "nft": forward_process.NFT,
    "awm": forward_process.AWM,
    "dgpo": forward_process.DGPO,
    "crd": centred_reward.CRD,
    "dpo": forward_process.DPO,
    "dpo_offline": offline_preference,
}


def needs_of(config: Config) -> Needs:
    """Returns what the config's method takes."""
    name = config.algorithm.name
    return ALGORITHMS[name].needs(config.algorithm[name])
