"""The training loop, which trains an experiment in a workdir and resumes it there."""
