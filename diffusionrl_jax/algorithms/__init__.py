"""The methods, by the name that a config gives them in `config.algorithm.name`."""

from diffusionrl_jax.algorithms import forward_process, policy_gradient, reward_weighted

# Name -> what has `needs`, of the method's own fields, and `make`, of a config and a process.
ALGORITHMS = {
    "policy_gradient": policy_gradient,
    "reward_weighted": reward_weighted,
    "nft": forward_process.NFT,
    "awm": forward_process.AWM,
    "dgpo": forward_process.DGPO,
    "dpo": forward_process.DPO,
}
