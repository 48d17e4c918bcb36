"""Goes from a config to everything that an experiment is made of."""
