"""The paper's tables in miniature, in the emoji world, beside its own numbers. It runs for hours.

    python benchmarks/paper_tables.py --table=N --output=FOLDER [--seeds=2] [--iterations=N]

Trains what a table needs, judges it on held-out prompts with the same noise, and prints the table:

- 1: preference by each method, by the preference model and a judge that is never rewarded;
- 2: the same models head to head, by the preference model;
- 3: parity, on occupations that are trained on and held-out ones;
- 4: detection, in pairs of objects that were seen in others and of those that were in none;
- 6: iterations, pictures and seconds until a method has converged;
- pretraining: what the judges apart say of the policy gradient without the pretraining loss and
  with it, at several checkpoints of a longer run.

The fifth is benchmarks/joint_training.py. Methods have the settings of benchmarks/race.py, with the
middle one of its learning rates, and the pretraining loss where the paper has it: beside ReFL and
its own method with the config's weight, beside reward-weighted training with 0.5. Tables 1, 2 and 6
are of the same runs; FOLDER keeps them, and started again, a table goes on where it was.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence

import emoji_runs
import paper_layout
from arguments import count, names_of
from emoji_runs import CONFIG, IMAGES, MEASURES, METHODS
from etils import epath
from paper_numbers import RANKS, SCORE_TABLES, ScoreTable

from configs import emoji_policy_gradient
from diffusionrl_jax.data.files import write_whole

PREFERENCE = SCORE_TABLES["1"]
WEIGHT = emoji_policy_gradient.get_config().pretraining.weight
WEIGHTS = {"refl": WEIGHT, "reward_weighted": 0.5, "policy_gradient": WEIGHT}
LONG = 192  # Iterations of the ablation.
# Prompts and noise that no run has watched; of sets that a table does not show, a few images.
SEED, FEW = 1, 20


def train(flags: argparse.Namespace, task: str, method: str, seed: int, ablated: str = "") -> str:
    """Trains, or finishes, one run, and returns its workdir.

    Args:
      flags: the command line.
      task: what is learned.
      method: by which method.
      seed: the run's.
      ablated: what the name of a run without a pretraining loss has behind the method's.
    """
    name = f"{task}-{method}{ablated}-{flags.iterations}-{seed}"
    workdir = os.path.join(flags.output, name)
    changes = emoji_runs.overrides(method, METHODS[method][1], seed, flags.iterations)
    changes["pretraining.weight"] = 0.0 if ablated else WEIGHTS.get(method, 0.0)
    # A run's last deed is its report.
    if os.path.exists(os.path.join(workdir, "report.html")):
        emoji_runs.check_trained_so(workdir, changes)
        return workdir
    return emoji_runs.train(flags.output, name, f"{CONFIG}:{task}", changes)


def evaluate(
    flags: argparse.Namespace, name: str, checkpoints: Mapping[str, str], sets: Sequence[str]
) -> str:
    """Judges checkpoints together, unless the same was judged before, and returns the folder.

    Args:
      flags: the command line.
      name: the folder's.
      checkpoints: each model's workdir and step, by the model's name.
      sets: those that the table shows.
    """
    folder = os.path.join(flags.output, "evaluations", name)
    images = {each: (flags.images or n) if each in sets else FEW for each, n in IMAGES.items()}
    asked = emoji_runs.evaluation_arguments(folder, checkpoints, images, {"evaluation.seed": SEED})
    kept = epath.Path(folder) / "asked.json"
    if not kept.exists() or json.loads(kept.read_text()) != asked:
        emoji_runs.run(flags.output, "evaluate", *asked)
        write_whole(kept, json.dumps(asked).encode())
    return folder


def evaluate_last(flags: argparse.Namespace, of: ScoreTable, seed: int) -> str:
    """Trains a table's methods with one seed, judges them together, and returns the folder."""
    workdirs = {method: train(flags, of.task, method, seed) for method in flags.methods}
    checkpoints = {method: f"{path}@{flags.iterations}" for method, path in workdirs.items()}
    sets = [column.measure[0] for column in of.columns]
    return evaluate(flags, f"{of.task}-{flags.iterations}-{seed}", checkpoints, sets)


def make_score_table(flags: argparse.Namespace) -> str:
    """Tables 1, 3 and 4."""
    of = SCORE_TABLES[flags.table]
    folders = [evaluate_last(flags, of, seed) for seed in range(flags.seeds)]
    return paper_layout.score_table(
        of, [emoji_runs.read_means(folder) for folder in folders], flags.methods
    )


def make_ranking(flags: argparse.Namespace) -> str:
    """Table 2."""
    folders = [evaluate_last(flags, PREFERENCE, seed) for seed in range(flags.seeds)]
    rates = [emoji_runs.read_pairs(folder, "head_to_head.csv") for folder in folders]
    return paper_layout.ranking(rates, flags.methods)


def make_convergence_table(flags: argparse.Namespace) -> str:
    """Table 6."""
    steps, measures = emoji_runs.steps_of(flags.iterations), MEASURES["preference"]
    runs = {}
    for method in flags.methods:
        for seed in range(flags.seeds):
            workdir = train(flags, "preference", method, seed)
            checkpoints = {str(step): f"{workdir}@{step}" for step in steps}
            sets = [name for name, _ in measures]
            folder = evaluate(flags, os.path.basename(workdir), checkpoints, sets)
            means = emoji_runs.read_means(folder)
            start = emoji_runs.mean_of(means["base"], measures)
            gains = {step: emoji_runs.mean_of(means[str(step)], measures) - start for step in steps}
            seconds = emoji_runs.seconds_of_an_iteration(workdir)
            runs.setdefault(method, []).append((gains, seconds))
    return paper_layout.convergence_table(runs)


def make_pretraining_table(flags: argparse.Namespace) -> str:
    """The ablation of the pretraining loss."""
    steps, found = emoji_runs.steps_of(flags.iterations), []
    for seed in range(flags.seeds):
        workdirs = {
            "with": train(flags, "preference", "policy_gradient", seed),
            "without": train(flags, "preference", "policy_gradient", seed, "_alone"),
        }
        checkpoints = {
            f"{name}-{step}": f"{workdir}@{step}"
            for name, workdir in workdirs.items()
            for step in steps
        }
        folder = evaluate(flags, f"pretraining-{flags.iterations}-{seed}", checkpoints, [*IMAGES])
        found.append(emoji_runs.read_pairs(folder, "differences.csv"))
    return paper_layout.pretraining_table(found, steps)


TABLES = dict.fromkeys(SCORE_TABLES, make_score_table) | {
    "2": make_ranking,
    "6": make_convergence_table,
    "pretraining": make_pretraining_table,
}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--table",
        required=True,
        choices=sorted(TABLES),
        help="the paper's number; the fifth is benchmarks/joint_training.py",
    )
    parser.add_argument("--output", required=True, help="where runs and evaluations go")
    parser.add_argument("--seeds", type=count, default=2, help="how often each model is trained")
    parser.add_argument(
        "--iterations",
        type=count,
        help=f"of each run; {emoji_runs.ITERATIONS}, for pretraining {LONG}, if not given",
    )
    parser.add_argument(
        "--methods",
        type=names_of("method", RANKS),
        help="those of the table to train, separated by commas; all if not given",
    )
    parser.add_argument(
        "--images",
        type=count,
        help=f"of each set that the table shows, a multiple of {FEW}; {IMAGES} if not given",
    )
    flags = parser.parse_args(arguments)
    is_long = flags.table == "pretraining"
    known = ["policy_gradient"] if is_long else SCORE_TABLES.get(flags.table, PREFERENCE).methods
    flags.iterations = flags.iterations or (LONG if is_long else emoji_runs.ITERATIONS)
    flags.methods = flags.methods or known
    if unknown := sorted(set(flags.methods) - set(known)):
        parser.error(f"table {flags.table} has no {', '.join(unknown)}; it has {', '.join(known)}")
    if flags.table == "2" and len(flags.methods) < 2:
        parser.error("table 2 sets methods against each other: name two or more")
    if (flags.images or FEW) % FEW:
        parser.error(f"--images={flags.images} must be a multiple of {FEW}")
    return flags


def main(arguments: list[str] | None = None) -> None:
    """Trains, judges and prints."""
    flags = parse_arguments(arguments)
    print(TABLES[flags.table](flags))


if __name__ == "__main__":
    main()
