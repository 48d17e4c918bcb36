"""The emoji world: a small universe of pictures in which every part of the method can be run."""
