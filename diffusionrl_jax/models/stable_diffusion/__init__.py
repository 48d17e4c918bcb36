"""Stable Diffusion 1.5, 2 and XL."""
