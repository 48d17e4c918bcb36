"""Measures what a run takes: `python -m diffusionrl_jax.benchmark COMMAND --help`.

compile   tells whether a config fits a TPU that is not there, and how fast it could be
plan      shows what is chosen for a config on slices of TPUs, and the memory that it takes
table     shows what the published models ask of common slices: their mathematics, or compiled
train     times warm steps on the devices that are there
"""

from diffusionrl_jax.command_line import programs

COMMANDS = ("compile", "plan", "table", "train")

if __name__ == "__main__":
    programs.run_command("benchmark", COMMANDS, "diffusionrl_jax.costs.commands", __doc__)
