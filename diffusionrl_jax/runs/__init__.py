"""A workdir: what is saved there, found again, gone on with and opened by others."""
