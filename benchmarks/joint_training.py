"""The paper's Table 5 in miniature, with controls, in the emoji world. It runs for hours.

    python benchmarks/joint_training.py --output=FOLDER [--seeds=2] [--iterations=N]
        [--variants=joint,fairness]

Trains the joint model, a model for each task alone, three controls (no pretraining loss, the
pretraining loss alone, the paper's shared parity reward instead of leave-one-out credit), and two
that need no pictures (the pretraining loss on those that the base model draws, the KL to the base
model in its place), each from the same base with each seed; evaluates all of them on held-out
prompts; prints how much of each single-task gain the joint model keeps. The last checkpoints are
compared, lest the choice of a best one favour a task. Started again, it goes on where it was, with
more seeds or variants if asked.
"""

import argparse
import itertools
import os
import statistics

import emoji_runs
from arguments import names_of
from emoji_runs import CONFIG, IMAGES, MEASURES, WATCHED

TASKS = ("preference", "compositionality", "fairness")
VARIANTS = {
    "joint": (CONFIG, []),
    **{task: (f"{CONFIG}:{task}", []) for task in TASKS},
    "no_pretraining": (CONFIG, ["--config.pretraining.weight=0"]),
    "pretraining_alone": (CONFIG, ["--config.algorithm.policy_gradient.timesteps_per_iteration=0"]),
    "shared_parity": (CONFIG, ["--config.tasks.fairness.scorer.options.credit=shared"]),
    "base_pictures": (CONFIG, ["--config.pretraining.pictures=base:8192"]),
    "kl_to_base": (
        CONFIG,
        ["--config.pretraining.weight=0", "--config.algorithm.policy_gradient.kl_weight=0.01"],
    ),
}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="where runs and tables go")
    parser.add_argument("--seeds", type=int, default=2, help="how often each model is trained")
    parser.add_argument("--iterations", type=int, help="of each run; the config's if not given")
    parser.add_argument(
        "--variants",
        type=names_of("variant", VARIANTS),
        default=list(VARIANTS),
        help=f"those to train, separated by commas; all of {', '.join(VARIANTS)} if not given",
    )
    return parser.parse_args(arguments)


def train(output: str, name: str, seed: int, iterations: int | None) -> str:
    """Trains one variant, or finishes it; its workdir."""
    config, overrides = VARIANTS[name]
    workdir = os.path.join(output, f"{name}-{seed}")
    if iterations:
        # The learning rate rises and falls as in the config, over the shorter or longer run.
        warmup = iterations // 6
        overrides = [
            *overrides,
            f"--config.iterations={iterations}",
            f"--config.optimizer.warmup_iterations={warmup}",
            f"--config.optimizer.decay_iterations={iterations - warmup}",
            # All are evaluated together at the end.
            f"--config.evaluation.every={iterations}",
        ]
    arguments = [f"--config={config}", f"--workdir={workdir}", f"--config.seed={seed}"]
    emoji_runs.run(output, "main", *arguments, *overrides)
    return workdir


def values(means: dict, name: str, measure: tuple[str, str]) -> list[float]:
    """A model's means, one for each seed; the base model has one."""
    variant = lambda run: run.rpartition("-")[0] or run
    return [row[measure] for run, row in means.items() if variant(run) == name]


def gain(means: dict, name: str, measure: tuple[str, str]) -> float:
    """How much higher than the base model's, on average over the seeds."""
    return statistics.mean(values(means, name, measure)) - means["base"][measure]


def table(means: dict, variants: list[str]) -> str:
    """A Markdown table: a row for each measure, a column for each model, ranges over seeds."""
    names = ("base", *variants)
    lines = [
        "| mean (range over seeds) | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for measure in (*itertools.chain(*MEASURES.values()), *WATCHED):
        cells = []
        for name in names:
            cells.append(emoji_runs.mean_and_range(values(means, name, measure)))
        lines.append(f"| {'/'.join(measure)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Trains, evaluates and prints."""
    flags = parse_arguments(arguments)
    checkpoints = {
        f"{name}-{seed}": f"{train(flags.output, name, seed, flags.iterations)}@last"
        for seed in range(flags.seeds)
        for name in flags.variants
    }
    evaluation = os.path.join(flags.output, "evaluation")
    asked = emoji_runs.evaluation_arguments(evaluation, checkpoints, IMAGES, {})
    emoji_runs.run(flags.output, "evaluate", *asked)
    means = emoji_runs.read_means(evaluation)
    print(table(means, flags.variants))
    if "joint" not in flags.variants:
        return
    for task, measures in MEASURES.items():
        if task not in flags.variants:
            continue
        for measure in measures:
            alone, joint = (gain(means, name, measure) for name in (task, "joint"))
            kept = f"{joint / alone:.0%}" if alone > 0 else "nothing to keep"
            print(
                f"{'/'.join(measure)}: {task} alone gains {alone:+.3f}, joint {joint:+.3f}: {kept}"
            )


if __name__ == "__main__":
    main()
