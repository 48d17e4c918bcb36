"""Scorers that programs import by their name."""


def brightness(images, prompts, metadata):
    return images.mean((1, 2, 3))
