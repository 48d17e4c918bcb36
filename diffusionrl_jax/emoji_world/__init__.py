"""Trains the models of the emoji world that are shipped."""
