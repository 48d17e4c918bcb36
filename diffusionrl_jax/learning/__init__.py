"""Advantages, losses, optimiser, train state, and the algorithm built from them."""
