"""Stable Diffusion 1.x, 2.x and XL: their networks, and the folders that hold them."""
