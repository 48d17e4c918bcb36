"""Tells whether training did what it should, from held-out prompts drawn with the same noise."""
