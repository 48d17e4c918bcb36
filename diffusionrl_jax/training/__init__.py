"""The loop: an experiment trained in a workdir, watched, saved and gone on with."""
