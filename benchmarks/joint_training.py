"""The paper's Table 5 in miniature, with controls, in the emoji world. It runs for hours.

    python benchmarks/joint_training.py --output=FOLDER [--seeds=2] [--iterations=N]

Trains the joint model, a model for each task alone, and three controls (no pretraining loss, the
pretraining loss alone, the paper's shared parity reward instead of leave-one-out credit), each from
the same base with each seed; evaluates all of them on held-out prompts; prints how much of each
single-task gain the joint model keeps. Started again, it goes on where it was.
"""

import csv
import itertools
import os
import statistics
import subprocess
import sys

from absl import app, flags

OUTPUT = flags.DEFINE_string("output", None, "Where runs and tables go.", required=True)
SEEDS = flags.DEFINE_integer("seeds", 2, "How often each model is trained.")
ITERATIONS = flags.DEFINE_integer("iterations", None, "Of each run; the config's if not given.")

CONFIG = "configs/emoji.py"
TASKS = ("preference", "compositionality", "fairness")
VARIANTS = {
    "joint": (CONFIG, []),
    **{task: (f"{CONFIG}:{task}", []) for task in TASKS},
    "no_pretraining": (CONFIG, ["--config.pretraining.weight=0"]),
    "pretraining_alone": (CONFIG, ["--config.timesteps_per_iteration=0"]),
    "shared_parity": (CONFIG, ["--config.tasks.fairness.scorer.options.credit=shared"]),
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


def output(name: str) -> str:
    """A path in the output folder."""
    return os.path.join(OUTPUT.value, name)


def run(module: str, *arguments: str) -> None:
    """Runs a program of the package as a user would; what it compiles is kept for the next."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": os.path.abspath(output("compiled"))}
    command = [sys.executable, "-m", f"diffusionrl_jax.{module}", *arguments]
    subprocess.run(command, check=True, env=environment)


def train(name: str, seed: int) -> str:
    """Trains one variant, or finishes it; its workdir."""
    config, overrides = VARIANTS[name]
    workdir = output(f"{name}-{seed}")
    if count := ITERATIONS.value:
        # The learning rate rises and falls as in the config, over the shorter or longer run.
        warmup = count // 6
        overrides = [
            *overrides,
            f"--config.iterations={count}",
            f"--config.optimizer.warmup_iterations={warmup}",
            f"--config.optimizer.decay_iterations={count - warmup}",
        ]
    run("main", f"--config={config}", f"--workdir={workdir}", f"--config.seed={seed}", *overrides)
    return workdir


def read_means(path: str) -> dict[str, dict[tuple[str, str], float]]:
    """evaluate.py's results.csv: model -> (set, scorer) -> mean."""
    means: dict[str, dict[tuple[str, str], float]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["measure"] == "mean":
                measure = row["set"], row["scorer"]
                means.setdefault(row["model"], {})[measure] = float(row["value"])
    return means


def values(means: dict, name: str, measure: tuple[str, str]) -> list[float]:
    """A model's means, one for each seed; the base model has one."""
    runs = ["base"] if name == "base" else [f"{name}-{seed}" for seed in range(SEEDS.value)]
    return [means[run][measure] for run in runs]


def gain(means: dict, name: str, measure: tuple[str, str]) -> float:
    """How much higher than the base model's, on average over the seeds."""
    return statistics.mean(values(means, name, measure)) - means["base"][measure]


def table(means: dict) -> str:
    """A Markdown table: a row for each measure, a column for each model, ranges over seeds."""
    names = ("base", *VARIANTS)
    lines = [
        "| mean (range over seeds) | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for measure in (*itertools.chain(*MEASURES.values()), *WATCHED):
        cells = []
        for name in names:
            found = values(means, name, measure)
            spread = f" ({min(found):.3f} to {max(found):.3f})" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.3f}{spread}")
        lines.append(f"| {'/'.join(measure)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(_):
    checkpoints = {
        f"{name}-{seed}": train(name, seed) for seed in range(SEEDS.value) for name in VARIANTS
    }
    listed = ",".join(f"{name}={workdir}@best" for name, workdir in checkpoints.items())
    evaluation = output("evaluation")
    run("evaluate", f"--config={CONFIG}", f"--checkpoints={listed}", f"--output={evaluation}")
    means = read_means(os.path.join(evaluation, "results.csv"))
    print(table(means))
    for task, measures in MEASURES.items():
        for measure in measures:
            alone, joint = (gain(means, name, measure) for name in (task, "joint"))
            kept = f"{joint / alone:.0%}" if alone > 0 else "nothing to keep"
            print(
                f"{'/'.join(measure)}: {task} alone gains {alone:+.3f}, joint {joint:+.3f}: {kept}"
            )


if __name__ == "__main__":
    app.run(main)
