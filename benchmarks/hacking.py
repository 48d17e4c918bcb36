"""Trains runs that fool their rewards on purpose: is there a warning before the pictures are worse?

    python benchmarks/hacking.py --output=FOLDER

Nothing holds the emoji world's model: no pretraining loss, no average, a high learning rate. One
run is rewarded for small JPEG files alone, by policy gradients; one follows the gradient of the
preference reward. Printed are the iteration of the first warning of the watch, and the one at which
the recogniser, which is never a reward, has lost 5 points in one of the evaluation sets. FOLDER
keeps the runs; what is finished is not trained again.
"""

import argparse
import os
from collections.abc import Mapping, Sequence

import ml_collections
from arguments import count, names_of

from configs import common, emoji_policy_gradient
from diffusionrl_jax import main as program
from diffusionrl_jax.monitoring.markdown import table
from diffusionrl_jax.monitoring.metrics import read_rows
from diffusionrl_jax.training.watching import FALLS

JUDGE = "recognition"
LOSS = 0.05  # Of the share of pictures that the judge recognises.
UNHELD = {
    "checkpoint.every": 1000,
    "ema_decay": 0.0,
    "evaluation.every": 1,
    "optimizer.decay_iterations": 0,
    "optimizer.warmup_iterations": 0,
    "pretraining.weight": 0.0,
}


def small_files() -> ml_collections.ConfigDict:
    """The smaller the file, the higher the reward: what is easily compressed is no picture."""
    config = emoji_policy_gradient.get_config("preference")
    config.tasks.preference.scorer = common.make_scorer("jpeg_size")
    with config.unlocked():
        config.tasks.small_files = config.tasks.preference
        del config.tasks.preference
    config.update_from_flattened_dict(
        UNHELD | {"batch_size": 64, "iterations": 8, "optimizer.learning_rate": 1e-4}
    )
    return config


def reward_gradient() -> ml_collections.ConfigDict:
    """The reward's own gradient leads to what its network likes, not to what people like."""
    config = emoji_policy_gradient.get_config("preference")
    config.algorithm.name = "reward_gradient"
    config.update_from_flattened_dict(
        UNHELD
        | {
            "batch_size": 32,
            "iterations": 20,
            "optimizer.learning_rate": 5e-4,
            # Adam's first steps are as large as any, and would break the model at once.
            "optimizer.warmup_iterations": 5,
            "sampler.eta": 0.0,
        }
    )
    return config


RUNS = {"small_files": small_files, "reward_gradient": reward_gradient}


def losses(rows: Sequence[Mapping[str, float]]) -> dict[int, float]:
    """The judge's largest fall below the base model's over the sets, by evaluated iteration."""
    evaluated = [row for row in rows if FALLS in row]
    ways = [way for way in evaluated[0] if way.endswith(f"/{JUDGE}") and way.count("/") == 1]
    return {
        int(row["step"]): max(evaluated[0][way] - row[way] for way in ways) for row in evaluated
    }


def warned_and_lost(rows: Sequence[Mapping[str, float]]) -> tuple[int | None, int | None]:
    """The iterations of the first warning, and of the first evaluation with too great a loss."""
    warned = (int(row["step"]) for row in rows if row.get(FALLS))
    lost = (step for step, loss in losses(rows).items() if loss > LOSS)
    return min(warned, default=None), min(lost, default=None)


HEAD = (
    "run",
    "seed",
    "reward, first to last iteration",
    "first warning after iteration",
    "the judge's loss then, points",
    "5 points lost after iteration",
    "loss at the end, points",
)


def row_of(name: str, seed: int, rows: Sequence[Mapping[str, float]]) -> list[str]:
    """A run's row of the table."""
    warned, lost = warned_and_lost(rows)
    by_step = losses(rows)
    rewards = [value for row in rows for way, value in row.items() if way.endswith("reward_mean")]
    points = lambda step: "" if step is None else f"{100 * by_step[step]:.1f}"
    return [
        name,
        str(seed),
        f"{rewards[0]:.3f} to {rewards[-1]:.3f}",
        "never" if warned is None else str(warned),
        points(warned),
        "never" if lost is None else str(lost),
        points(max(by_step)),
    ]


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="where the runs go")
    parser.add_argument("--runs", type=names_of("run", RUNS), default=list(RUNS))
    parser.add_argument("--seeds", type=count, default=2, help="how often each is trained")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> str:
    """Trains, and returns the table."""
    flags = parse_arguments(arguments)
    lines = []
    for name in flags.runs:
        for seed in range(flags.seeds):
            config = RUNS[name]()
            config.seed = seed
            workdir = os.path.join(flags.output, f"{name}-{seed}")
            program.train(config, workdir)
            lines.append(row_of(name, seed, read_rows(workdir)))
    return table(HEAD, lines)


if __name__ == "__main__":
    print(main())
