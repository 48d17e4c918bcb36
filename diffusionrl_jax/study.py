"""Asks people which of two models' pictures they prefer: `python -m diffusionrl_jax.study COMMAND`.

serve     draws the pictures, and shows them to each rater on a web page
export    draws the pictures, and writes a page for each rater that needs no server
report    tells what people prefer, how much they agree, and what reward models say

`python -m diffusionrl_jax.study COMMAND --help` lists a command's flags.
"""

from diffusionrl_jax.command_line import programs

COMMANDS = ("serve", "export", "report")

if __name__ == "__main__":
    package = "diffusionrl_jax.reporting.study.commands"
    programs.run_command("study", COMMANDS, package, __doc__, extra="study")
