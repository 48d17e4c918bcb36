"""The commands of `python -m diffusionrl_jax.study`."""
