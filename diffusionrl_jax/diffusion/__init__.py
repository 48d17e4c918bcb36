"""The noise schedule, the denoising step as a policy, and the chain that is sampled."""
