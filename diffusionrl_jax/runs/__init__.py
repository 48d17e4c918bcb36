"""A run's workdir: what is saved there and found again, and how others open it."""
