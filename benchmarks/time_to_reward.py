"""Seconds until the same preference score on held-out prompts, of ours and of TRL's DDPOTrainer.

    python benchmarks/time_to_reward.py --rival-python=/path/to/venv/bin/python --output=FOLDER

Both learn from the emoji world's preference reward, from the same weights, prompts and groups, on
the same cores, without a pretraining loss. TRL is trained with each of three learning rates for as
long as is said. Checkpoints of all are judged by one evaluation: the target is the score that TRL
reaches with the best of its rates. Only training is counted, with what is compiled meanwhile.
FOLDER keeps what is finished. See docs/throughput.md.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence

import emoji_runs
import jax
import numpy as np
import rival
from arguments import count, names_of
from emoji_runs import ITERATIONS, MEASURES, METHODS
from etils import epath

from configs import emoji_policy_gradient
from diffusionrl_jax import assets
from diffusionrl_jax.data.files import write_whole
from diffusionrl_jax.data.prompt_sources import make_prompts
from diffusionrl_jax.data.prompts import prompt_batch
from diffusionrl_jax.monitoring.markdown import table
from diffusionrl_jax.monitoring.metrics import read_rows
from diffusionrl_jax.rewards import scoring
from diffusionrl_jax.rewards.scorers import load_scorer

TASK = "preference"
CONFIG = f"{emoji_runs.CONFIG}:{TASK}"
# An iteration of TRL's trains all steps of its pictures, as by default, in two updates.
IMAGES_DRAWN, UPDATES, SAMPLE_BATCH, TRAIN_BATCH = 320, 2, 64, 32
RATES = (3e-5, 1e-4, 3e-4)  # The last is TRL's default.
POINTS = 8  # Checkpoints of a run of TRL.


@dataclasses.dataclass(frozen=True)
class Point:
    """A checkpoint of a run.

    Attributes:
      checkpoint: where it is, as `evaluate` takes it.
      seconds: of training until then.
      pictures: drawn until then.
    """

    checkpoint: str
    seconds: float
    pictures: float


@contextlib.contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Holds this process, and those that it starts meanwhile, to some of the cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def make_reward(config) -> rival.Reward:
    """The task's reward, compiled for TRL's batches."""
    task = config.tasks[TASK]
    reward, params = load_scorer(task.scorer, task.group_size)
    score = jax.jit(lambda images, inputs: scoring.score(reward, params, images, inputs))

    def call(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        return np.asarray(score(images, reward.prepare(prompts)))

    example = [make_prompts(task.prompts, config.seed)[0]] * SAMPLE_BATCH
    call(np.zeros((SAMPLE_BATCH, 32, 32, 3), np.float32), example)
    return call


def rival_prompts(config) -> list[str]:
    """What TRL draws, in turn: the prompts of our iterations, each group in a row."""
    task, seed = config.tasks[TASK], config.seed
    source = make_prompts(task.prompts, seed)
    batches = (
        prompt_batch(source, step, IMAGES_DRAWN, task.group_size) for step in range(ITERATIONS)
    )
    return list(itertools.chain.from_iterable(batches))


def train_rival(python: str, folder: str, rate: float, seconds: float, threads: int) -> list[Point]:
    """Trains TRL for so many seconds, and saves `POINTS` checkpoints as evenly as iterations go."""
    config = emoji_policy_gradient.get_config(TASK)
    model = str(assets.resolve(config.model))
    os.makedirs(folder, exist_ok=True)
    settings = {
        "model": model,
        "prompts": rival_prompts(config),
        "images": IMAGES_DRAWN,
        "steps": config.sampler.steps,
        "train_timesteps": config.sampler.steps,
        "guidance_scale": config.sampler.guidance_scale,
        "sample_batch": SAMPLE_BATCH,
        "train_batch": TRAIN_BATCH,
        "accumulation": IMAGES_DRAWN // TRAIN_BATCH // UPDATES,
        "threads": threads,
        "learning_rate": rate,
        "clip_range": config.algorithm.policy_gradient.clip_range,
        "advantage_clip": config.advantage_clip,
        "gradient_clip": config.optimizer.gradient_clip,
        "group_size": config.tasks[TASK].group_size,
        "exchange": folder,
    }
    points, spent, iterations = [], 0.0, 0
    with rival.start(python, settings, make_reward(config)) as worker:
        print(f"TRL: {worker.about}", file=sys.stderr)
        while spent < seconds:
            measured = worker.iterate()
            spent, iterations = spent + measured["iteration"], iterations + 1
            print(
                f"TRL at {rate:g}: {iterations} iterations in {spent:.0f} s, "
                f"reward {measured['reward']:.3f}",
                file=sys.stderr,
                flush=True,
            )
            if spent >= (len(points) + 1) * seconds / POINTS:
                checkpoint = os.path.join(folder, str(iterations))
                shutil.copytree(model, checkpoint, dirs_exist_ok=True)
                worker.save(os.path.join(checkpoint, "unet"))
                points.append(Point(checkpoint, spent, iterations * IMAGES_DRAWN))
    return points


def train_ours(folder: str, method: str) -> list[Point]:
    """Trains by one of our methods, with its usual rate; nothing was compiled before."""
    changes = emoji_runs.overrides(method, METHODS[method][1], 0, ITERATIONS)
    workdir = emoji_runs.train(folder, "run", CONFIG, changes)
    batch = changes["batch_size"]
    rows = (row for row in read_rows(workdir) if "images_per_second" in row)
    seconds = np.cumsum([batch / row["images_per_second"] for row in rows])
    return [
        Point(f"{workdir}@{step}", float(seconds[step - 1]), step * batch)
        for step in emoji_runs.steps_of(ITERATIONS)
    ]


def judge(output: str, runs: dict[str, list[Point]]) -> dict[str, list[float]]:
    """The mean preference of the base model, and of each checkpoint, by the runs' names."""
    checkpoints = {
        f"{name}-{number}": point.checkpoint
        for name, points in runs.items()
        for number, point in enumerate(points)
    }
    folder = os.path.join(output, "evaluation")
    changes = {"evaluation.seed": 1}
    asked = emoji_runs.evaluation_arguments(
        folder, checkpoints, emoji_runs.IMAGES_OF_PAIRS, changes
    )
    emoji_runs.run(output, "evaluate", *asked)
    means = {
        model: emoji_runs.mean_of(found, MEASURES[TASK])
        for model, found in emoji_runs.read_means(folder).items()
    }
    return {
        name: [means["base"], *(means[f"{name}-{number}"] for number in range(len(points)))]
        for name, points in runs.items()
    }


def reached(points: list[Point], scores: list[float], target: float) -> Point | None:
    """When a run reaches a score, between two checkpoints by a straight line; None if never.

    Args:
      points: the checkpoints.
      scores: the base model's, and each checkpoint's.
      target: the score.
    """
    known = [Point("", 0.0, 0.0), *points]
    for (before, low), (after, high) in itertools.pairwise(zip(known, scores, strict=True)):
        if high >= target:
            at = lambda start, end, low=low, high=high: np.interp(target, (low, high), (start, end))
            return Point(
                after.checkpoint,
                float(at(before.seconds, after.seconds)),
                float(at(before.pictures, after.pictures)),
            )
    return None


HEAD = ("", "best score", "seconds until the target", "TRL / this", "pictures", "TRL / this")


def report(runs: dict[str, list[Point]], scores: dict[str, list[float]], rivals: list[str]) -> str:
    """The table, a row for each run; the target is the best score of all of TRL's runs."""
    best = max(rivals, key=lambda name: max(scores[name]))
    target = max(scores[best])
    if target <= scores[best][0]:
        return f"No run of TRL's has a higher score than the base model's, {target:.3f}."
    at = {name: reached(points, scores[name], target) for name, points in runs.items()}
    rows = []
    for name, point in at.items():
        row = [name, f"{max(scores[name]):.3f}"]
        if point is None:
            rows.append([*row, "not reached", "", "", ""])
            continue
        ratio = lambda field, point=point: getattr(at[best], field) / getattr(point, field)
        rows.append(
            [
                *row,
                f"{point.seconds:.0f}",
                f"{ratio('seconds'):.1f}",
                f"{point.pictures:.0f}",
                f"{ratio('pictures'):.1f}",
            ]
        )
    base = scores[best][0]
    return f"Base model {base:.3f}, target {target:.3f} ({best}).\n\n{table(HEAD, rows)}"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rival-python", required=True, help="of an environment with TRL")
    parser.add_argument("--output", required=True, help="where runs and results go")
    parser.add_argument(
        "--methods",
        type=names_of("method", METHODS),
        default=["policy_gradient", "nft", "crd", "reward_gradient"],
        help="ours, separated by commas",
    )
    parser.add_argument("--seconds", type=count, default=600, help="of each of TRL's runs")
    parser.add_argument(
        "--cores",
        type=lambda text: [int(core) for core in text.split(",")],
        default=sorted(os.sched_getaffinity(0)),
        help="separated by commas, for both; all if not given",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> str:
    """Trains what is not trained yet, judges it, and returns the table."""
    flags = parse_arguments(arguments)
    os.makedirs(flags.output, exist_ok=True)
    path = epath.Path(flags.output) / "runs.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    runs = {name: [Point(**point) for point in points] for name, points in found.items()}
    rivals = [f"TRL at {rate:g}" for rate in RATES]
    folder = lambda name: os.path.join(flags.output, name.replace(" ", "-"))
    train = {
        name: lambda name=name, rate=rate: train_rival(
            flags.rival_python, folder(name), rate, flags.seconds, len(flags.cores)
        )
        for name, rate in zip(rivals, RATES, strict=True)
    } | {name: lambda name=name: train_ours(folder(name), name) for name in flags.methods}
    with on_cores(flags.cores):
        for name in train:
            if name not in runs:
                runs[name] = train[name]()
                written = {run: list(map(dataclasses.asdict, runs[run])) for run in runs}
                write_whole(path, json.dumps(written, indent=1).encode())
    runs = {name: runs[name] for name in train}
    return report(runs, judge(flags.output, runs), rivals)


if __name__ == "__main__":
    print(main())
