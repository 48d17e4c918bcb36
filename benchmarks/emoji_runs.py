"""What the studies of the emoji world have in common: their runs, and how those are judged."""

import csv
import functools
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence

from diffusionrl_jax.monitoring.metrics import read_rows
from diffusionrl_jax.runs import trained

CONFIG = "configs/emoji_policy_gradient.py"
# Of the runs that compare methods, which all draw as many images and are judged as often.
ITERATIONS, BATCH, EVALUATIONS = 48, 160, 8
# Of each method, what differs: its published settings where they suit four steps and small groups,
# and the middle one of the three learning rates. All learn from a picture once an iteration, and
# those that need no noise draw without it. Averages follow as in configs/emoji.py: the published
# rates are for thousands of iterations. What learns from its own pictures alone falls apart at the
# others' rates.
WITHOUT_NOISE = {"sampler.eta": 0.0}


def following(method: str) -> dict:
    """The settings of a method with an average that follows the parameters."""
    return WITHOUT_NOISE | {f"algorithm.{method}.decay_rate": 0.1}


METHODS = {
    "policy_gradient": ({}, 2e-4),
    "reward_weighted": (WITHOUT_NOISE | {"algorithm.reward_weighted.noises": 1}, 2e-5),
    "raft": (WITHOUT_NOISE | {"algorithm.raft.noises": 1}, 2e-5),
    "nft": (following("nft") | {"algorithm.nft.error": "output"}, 2e-4),
    "awm": (following("awm"), 1e-4),
    "dgpo": (
        following("dgpo")
        | {"algorithm.dgpo.clip_range": 1e-3, "algorithm.dgpo.least_time": 0.5625},
        1e-4,
    ),
    "crd": (following("crd"), 1e-4),
    "dpo": (WITHOUT_NOISE, 1e-4),
    "reward_gradient": (WITHOUT_NOISE, 1e-4),
    "refl": (WITHOUT_NOISE | {"algorithm.refl.late_steps": 2}, 1e-4),
    "draft_k": (WITHOUT_NOISE, 1e-4),
    "draft_lv": (WITHOUT_NOISE | {"optimizer.one_step": True}, 1e-4),
}
# What each task is judged by: the evaluation's set and scorer. The second set of each holds things
# that were held out of the base model's pairs, or of training.
MEASURES = {
    "preference": (("new_pairs", "preference"), ("unseen_pairs", "preference")),
    "compositionality": (("new_pairs", "detection"), ("unseen_pairs", "detection")),
    "fairness": (("portraits", "parity"), ("unseen_portraits", "parity")),
}
# Judges that no task is rewarded by.
WATCHED = (
    ("new_pairs", "recognition"),
    ("unseen_pairs", "recognition"),
    ("portraits", "independent_parity"),
    ("unseen_portraits", "independent_parity"),
)
# Differences between models are small: more images than a run's own evaluation draws.
IMAGES = {"new_pairs": 384, "unseen_pairs": 384, "portraits": 320, "unseen_portraits": 320}
# Where pairs alone are compared, at many checkpoints.
IMAGES_OF_PAIRS = {
    "new_pairs": 192,
    "unseen_pairs": 192,
    "portraits": 20,
    "unseen_portraits": 20,
}
# Of a run's own evaluations, which no study reads.
IMAGES_OF_RUNS = dict.fromkeys(IMAGES, 40)


def run(output: str, module: str, *arguments: str) -> None:
    """Runs a program of the package as a user would; what it compiles is kept for the next."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": os.path.abspath(os.path.join(output, "compiled"))
    }
    command = [sys.executable, "-m", f"diffusionrl_jax.{module}", *arguments]
    # Standard output is for a study's own table.
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)


def flags_of(changes: Mapping) -> list[str]:
    """The flags that change a config, from the fields' names and values."""
    return [f"--config.{field}={value}" for field, value in changes.items()]


def overrides(method: str, rate: float, seed: int, iterations: int) -> dict:
    """What a run without a pretraining loss has changed from `CONFIG`, by the fields' names."""
    changes = {
        "algorithm.name": method,
        "batch_size": BATCH,
        "checkpoint.every": steps_of(iterations)[0],
        # Those of `steps_of`, though a run that is stopped leaves one more each time.
        "checkpoint.keep_last": 2 * EVALUATIONS,
        "ema_decay": 0.9,
        "evaluation.every": iterations,
        "iterations": iterations,
        "optimizer.decay_iterations": iterations,
        "optimizer.learning_rate": rate,
        "optimizer.warmup_iterations": 3,
        "pretraining.weight": 0.0,
        "seed": seed,
    }
    return changes | sizes_of(IMAGES_OF_RUNS) | METHODS[method][0]


def sizes_of(images: Mapping[str, int]) -> dict:
    """How many images each of the evaluation's sets has, by the fields' names."""
    return {f"evaluation.sets.{name}.images": count for name, count in images.items()}


def steps_of(iterations: int) -> list[int]:
    """After which iterations a run is judged: `EVALUATIONS` times at most, and at its end."""
    every = -(-iterations // EVALUATIONS)
    return [*range(every, iterations, every), iterations]


def train(output: str, name: str, config: str, changes: Mapping) -> str:
    """Trains, or finishes, one run, and returns its workdir."""
    workdir = os.path.join(output, name)
    run(output, "main", f"--config={config}", f"--workdir={workdir}", *flags_of(changes))
    return workdir


def check_trained_so(workdir: str, changes: Mapping) -> None:
    """Ends the program if a run that is complete was trained with other settings.

    Args:
      workdir: the run's folder.
      changes: the settings, by the fields' names.
    """
    kept = trained.read_config(workdir).to_dict()
    for field, value in changes.items():
        found = functools.reduce(lambda part, name: part[name], field.split("."), kept)
        if str(found) != str(value):
            sys.exit(f"{workdir} was trained with {field}={found}, now {value}: remove it.")


def evaluation_arguments(
    folder: str, checkpoints: Mapping[str, str], images: Mapping[str, int], changes: Mapping
) -> list[str]:
    """What `evaluate` is asked, so that it judges all models by the same sampler.

    Args:
      folder: where its files go.
      checkpoints: each model's workdir and step, by the model's name.
      images: how many each set has.
      changes: what else of the config is changed, by the fields' names.
    """
    listed = ",".join(f"{name}={checkpoint}" for name, checkpoint in checkpoints.items())
    options = [f"--config={CONFIG}", f"--checkpoints={listed}", f"--output={folder}"]
    return options + flags_of(sizes_of(images) | dict(changes))


def read_means(folder: str) -> dict[str, dict[tuple[str, str], float]]:
    """The results.csv in evaluate.py's folder: model -> (set, scorer) -> mean."""
    means: dict[str, dict[tuple[str, str], float]] = {}
    with open(os.path.join(folder, "results.csv"), newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["measure"] == "mean":
                measure = row["set"], row["scorer"]
                means.setdefault(row["model"], {})[measure] = float(row["value"])
    return means


def read_pairs(folder: str, file: str) -> dict[tuple, tuple[float, float, float]]:
    """What sets two models beside each other in evaluate.py's folder, with its 95% interval.

    Args:
      folder: the folder.
      file: differences.csv or head_to_head.csv.

    Returns:
      (model, against, set, scorer) -> value, low and high; NaN where there is no interval.
    """
    number = lambda text: float(text or "nan")
    with open(os.path.join(folder, file), newline="", encoding="utf-8") as rows:
        return {
            (row["model"], row["against"], row["set"], row["scorer"]): (
                number(row["value"]),
                number(row["low"]),
                number(row["high"]),
            )
            for row in csv.DictReader(rows)
        }


def mean_of(means: Mapping[tuple[str, str], float], measures: Iterable[tuple[str, str]]) -> float:
    """A model's mean over several sets."""
    return statistics.mean(means[measure] for measure in measures)


def seconds_of_an_iteration(workdir: str) -> float:
    """The median, which compiles nothing."""
    return BATCH / statistics.median(
        row["images_per_second"] for row in read_rows(workdir) if "images_per_second" in row
    )


def mean_and_range(values: Sequence[float], digits: int = 3) -> str:
    """A mean, and what it lies between where there are several values."""
    number = lambda value: f"{value:.{digits}f}"
    spread = f" ({number(min(values))} to {number(max(values))})" if len(values) > 1 else ""
    return number(statistics.mean(values)) + spread
