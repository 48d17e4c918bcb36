"""Stable Diffusion and the reward models' networks as Flax modules, and their PyTorch weights."""

import diffusers

# Importing diffusers' Flax modules, and every setup of one, logs that they are deprecated.
diffusers.utils.logging.set_verbosity_error()
