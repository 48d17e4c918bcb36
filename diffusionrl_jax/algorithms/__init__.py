"""The methods of learning, by the name that a config gives them in `config.algorithm.name`."""

from diffusionrl_jax.algorithms import policy_gradient, reward_weighted

# Name -> module. Its `needs` takes the method's own config fields, its `make` a config and a
# process.
ALGORITHMS = {"policy_gradient": policy_gradient, "reward_weighted": reward_weighted}
