"""Stable Diffusion 3, 3.5 and FLUX: transformers in which text and picture attend to each other."""
