"""Finds, fetches, reads and writes the folders and files of models."""
