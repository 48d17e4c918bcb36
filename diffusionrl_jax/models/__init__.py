"""Stable Diffusion and the reward models' networks as Flax modules, and their PyTorch weights."""
