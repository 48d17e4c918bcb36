"""Runs programs as a user starts them, each in a process that is forked from one that has imported
JAX and the package, so that hundreds take minutes."""

import multiprocessing
import os
import runpy
import sys

# What takes the seconds; no program, whose flags are made when it is imported.
PRELOADED = (
    "diffusionrl_jax.training.loop",
    "diffusionrl_jax.evaluation.compare",
    "diffusionrl_jax.runs.export",
    "diffusionrl_jax.costs.dry_run",
    "diffusionrl_jax.costs.throughput",
    "diffusionrl_jax.experiments.caching",
    "diffusionrl_jax.command_line.start",
)


def _run(program, arguments, folder, output, paths):
    os.chdir(folder)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.argv = [program, *arguments]
    sys.path[:0] = paths
    runpy.run_module(f"diffusionrl_jax.{program}", run_name="__main__", alter_sys=True)


def run(program, arguments, folder, paths=(), timeout=120):
    """Exit status (None if it takes too long) and output of a program.

    Args:
      program: as after `python -m diffusionrl_jax.`.
      arguments: its flags.
      folder: where it is started; its output is kept there.
      paths: of modules, before the others.
      timeout: seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    output = str(folder / "output.txt")
    process = context.Process(
        target=_run, args=(program, list(arguments), str(folder), output, list(paths))
    )
    process.start()
    process.join(timeout)
    status = process.exitcode
    if status is None:
        process.kill()
        process.join()
    with open(output, errors="replace") as file:
        return status, file.read()
