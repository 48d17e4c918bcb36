"""The noise schedule, the denoising step as a policy, and the sampled chain."""
