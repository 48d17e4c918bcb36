"""The methods, by the name that a config gives them in `config.algorithm.name`."""

from diffusionrl_jax.algorithms import policy_gradient, reward_weighted

# Name -> module with `needs`, of the method's own fields, and `make`, of a config and a process.
ALGORITHMS = {"policy_gradient": policy_gradient, "reward_weighted": reward_weighted}
