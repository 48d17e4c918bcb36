"""Images per second of this project and of TRL's DDPOTrainer, on the same work and machine.

    python benchmarks/throughput.py --rival-python=/path/to/venv/bin/python

The two take turns, an iteration each, and never run at once. See docs/throughput.md.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import rival
from iteration import Ours, Work, emoji_prompts

from diffusionrl_jax.emoji_world import emoji_model
from diffusionrl_jax.models.stable_diffusion.build import init_stable_diffusion
from diffusionrl_jax.models.stable_diffusion.folder import save_stable_diffusion

PHASES = ("sampling", "training", "iteration")
SIDES = ("ours", "TRL")
# OpenMP's threads go on spinning for a while after their work.
PAUSE_SECONDS = 1.0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; the defaults are those of docs/throughput.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rival-python", help="of an environment with TRL; without, only ours")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=128, help="of an iteration")
    parser.add_argument("--steps", type=int, default=20, help="of sampling")
    parser.add_argument("--train-timesteps", type=int, default=4, help="K, of each image")
    parser.add_argument("--guidance-scale", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=2, help="TRL's; our virtual devices")
    parser.add_argument("--convolution", default="auto", help="ours: auto, xla or taps")
    parser.add_argument("--sample-microbatch", type=int, default=32, help="ours, of a device")
    parser.add_argument("--update-microbatch", type=int, default=16, help="ours, of a device")
    parser.add_argument("--rival-sample-batch", type=int, default=64)
    parser.add_argument("--rival-train-batch", type=int, default=32)
    return parser.parse_args(arguments)


def measure(
    sides: dict[str, Callable[[], dict]], rounds: int, pause: float
) -> dict[str, list[dict]]:
    """Each side's first iteration, then one a round, in turns.

    Args:
      sides: name -> a function that runs an iteration.
      rounds: how many.
      pause: seconds between two iterations.

    Returns:
      name -> 1 + rounds measurements.
    """
    measured = {name: [] for name in sides}
    for round_number in range(rounds + 1):
        # Who goes first changes, lest one always finds the machine as the other left it.
        order = list(sides) if round_number % 2 else list(sides)[::-1]
        for name in order:
            time.sleep(pause)
            measured[name].append(sides[name]())
            last = measured[name][-1]
            seconds = ", ".join(f"{phase} {last[phase]:.2f} s" for phase in PHASES)
            print(f"round {round_number}, {name}: {seconds}", file=sys.stderr, flush=True)
    return measured


def check_work(work: Work, measured: dict[str, list[dict]]) -> None:
    """Compares what was counted while running with what the work is.

    Raises:
      AssertionError: a side did other work.
    """
    for name, iterations in measured.items():
        for iteration in iterations:
            for key, expected in work.counts.items():
                counted = iteration.get(key, expected)
                assert counted == expected, f"{name}: {key} is {counted}, not {expected}."


def table(work: Work, measured: dict[str, list[dict]]) -> str:
    """Images per second by phase, a Markdown table; the first iteration is apart."""
    rate = lambda iteration, phase: work.images / iteration[phase]
    lines = [f"| images/s | {' | '.join(measured)} | ours / TRL (range) |"]
    lines.append("|---|" + "---|" * (len(measured) + 1))
    for phase in PHASES:
        warm = {name: [rate(i, phase) for i in its[1:]] for name, its in measured.items()}
        cells = [f"{statistics.median(rates):.2f}" for rates in warm.values()]
        ratio = "-"
        if len(warm) == 2:
            ratios = [a / b for a, b in zip(*(warm[name] for name in SIDES), strict=True)]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| {phase} | {' | '.join(cells)} | {ratio} |")
    first = [f"{iterations[0]['iteration']:.1f} s" for iterations in measured.values()]
    lines.append(f"| first iteration, with compilation | {' | '.join(first)} | |")
    rewards = [f"{iterations[0]['reward']:.3f}" for iterations in measured.values()]
    lines.append(f"| mean reward of the first | {' | '.join(rewards)} | |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> str:
    """Measures, and returns the table."""
    flags = parse_arguments(arguments)
    work = Work(flags.images, flags.steps, flags.train_timesteps, flags.guidance_scale)
    prompts = emoji_prompts(work.images)
    tokenizer = emoji_model.train_tokenizer()
    model, params = init_stable_diffusion(
        emoji_model.configs(tokenizer, scaling_factor=1.0),
        jax.random.key(0),
        tokenizer,
        convolution=flags.convolution,
    )
    ours = Ours(
        model,
        params,
        work,
        prompts,
        jax.devices()[: flags.threads],
        flags.sample_microbatch,
        flags.update_microbatch,
    )
    sides = {"ours": ours.iterate}
    print(f"Work of an iteration: {work}, {work.counts}", file=sys.stderr)
    with contextlib.ExitStack() as stack:
        if flags.rival_python:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            save_stable_diffusion(folder, model, params, dtype="float32")
            settings = work.rival_settings(
                folder, prompts, flags.rival_sample_batch, flags.rival_train_batch, flags.threads
            )
            worker = stack.enter_context(rival.start(flags.rival_python, settings))
            sides["TRL"] = worker.iterate
            print(f"TRL: {worker.about}", file=sys.stderr)
        measured = measure(sides, flags.rounds, PAUSE_SECONDS if flags.rival_python else 0.0)
    check_work(work, measured)
    return table(work, measured)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", parse_arguments(None).threads)
    print(main())
