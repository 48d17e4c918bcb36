"""The paper's Table 5 in miniature, with controls, in the emoji world. It runs for hours.

    python benchmarks/joint_training.py --output=FOLDER [--seeds=2] [--iterations=N]

Trains the joint model, a model for each task alone, and three controls (no pretraining loss, the
pretraining loss alone, the paper's shared parity reward instead of leave-one-out credit), each from
the same base with each seed; evaluates all of them on held-out prompts; prints how much of each
single-task gain the joint model keeps. Started again, it goes on where it was.
"""

import csv
import pathlib
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
# What each task is judged by: the evaluation's set and scorer.
MEASURES = {
    "preference": ("new_pairs", "preference"),
    "compositionality": ("new_pairs", "detection"),
    "fairness": ("portraits", "parity"),
}


def run(module: str, *arguments: str) -> None:
    """Runs a program of the package as a user would."""
    subprocess.run([sys.executable, "-m", f"diffusionrl_jax.{module}", *arguments], check=True)


def train(name: str, seed: int) -> pathlib.Path:
    """Trains one variant, or finishes it; its workdir."""
    config, overrides = VARIANTS[name]
    workdir = pathlib.Path(OUTPUT.value, f"{name}-{seed}")
    if ITERATIONS.value:
        overrides = [*overrides, f"--config.iterations={ITERATIONS.value}"]
    run("main", f"--config={config}", f"--workdir={workdir}", f"--config.seed={seed}", *overrides)
    return workdir


def read_means(path: pathlib.Path) -> dict[str, dict[tuple[str, str], float]]:
    """evaluate.py's results.csv: model -> (set, scorer) -> mean."""
    means: dict[str, dict[tuple[str, str], float]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["measure"] == "mean":
                measure = row["set"], row["scorer"]
                means.setdefault(row["model"], {})[measure] = float(row["value"])
    return means


def main(_):
    checkpoints = {
        f"{name}-{seed}": train(name, seed) for seed in range(SEEDS.value) for name in VARIANTS
    }
    output = pathlib.Path(OUTPUT.value, "evaluation")
    listed = ",".join(f"{name}={workdir}@best" for name, workdir in checkpoints.items())
    run("evaluate", f"--config={CONFIG}", f"--checkpoints={listed}", f"--output={output}")
    means = read_means(output / "results.csv")

    print(f"{'':20}" + "".join(f"{task:>20}" for task in TASKS))
    for name in ("base", *VARIANTS):
        cells = []
        for task in TASKS:
            runs = [name] if name == "base" else [f"{name}-{seed}" for seed in range(SEEDS.value)]
            values = [means[run][MEASURES[task]] for run in runs]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f}..{max(values):.3f})")
        print(f"{name:20}" + "".join(f"{cell:>20}" for cell in cells))
    for task in TASKS:
        measure = MEASURES[task]

        def gain(name, measure=measure):
            values = [means[f"{name}-{seed}"][measure] for seed in range(SEEDS.value)]
            return statistics.mean(values) - means["base"][measure]

        kept = gain("joint") / gain(task) if gain(task) else float("nan")
        print(f"joint keeps {kept:.0%} of the gain of {task} alone ({gain(task):+.3f})")


if __name__ == "__main__":
    app.run(main)
