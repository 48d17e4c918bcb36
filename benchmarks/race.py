"""Races the methods in the emoji world: who gets how far to real pictures, and with how much?

    python benchmarks/race.py --output=FOLDER [--methods=policy_gradient,nft] [--seeds=3]

Every method learns compositionality from the same base model and prompts, with the same number of
images an iteration, the same average of the parameters, no pretraining loss and as many iterations,
and is judged on held-out prompts and noise. Each has three tries at its learning rate, on a seed
and prompts that are not reported, with half of the iterations; the rate with the best detection
there is raced. Printed are, with 95% intervals over the seeds, the share of the distance that is
closed at the end, and the largest one before the recogniser, which is never a reward, falls; and
what it took until a quarter was closed, and half: pictures drawn, passes of the denoiser (a forward
pass is one, a backward pass two), seconds of training without compilation on the devices that are
there, and the chip-seconds that as many pictures of Stable Diffusion 2 ask of a v5e at its peak.
Seconds are of a few iterations of each method, one after the other, when all have been raced. It
runs for hours. FOLDER keeps every run, results.json and race.svg; started again, it goes on where
it was.
"""

import argparse
import dataclasses
import json
import os
import statistics
from collections.abc import Sequence

import emoji_runs
import matplotlib
import ml_collections
import numpy as np
import scipy.stats
from arguments import names_of
from emoji_runs import BATCH, ITERATIONS, METHODS
from etils import epath

from configs import emoji_policy_gradient, fast, image_reward
from diffusionrl_jax.costs import phases
from diffusionrl_jax.costs.needs import needs
from diffusionrl_jax.data.files import write_whole
from diffusionrl_jax.distributed import chips
from diffusionrl_jax.models.families import describe_model
from diffusionrl_jax.monitoring.markdown import table

TASK = "compositionality"
CONFIG = f"{emoji_runs.CONFIG}:{TASK}"
STEPS = emoji_runs.steps_of(ITERATIONS)
TRIES = (0.5, 1.0, 2.0)
TUNING_SEED, TUNING_PROMPTS = 100, "emoji:compositions"
TIMED = 8  # Iterations of the run that tells a method's seconds.
REWARD, JUDGE = "detection", "recognition"
SETS = ("new_pairs", "unseen_pairs")
COLOURS = 6  # Of the plot.
ENOUGH = {"a quarter": 0.25, "half": 0.5}  # Of the distance from base to real pictures.
FALL = 0.02  # Of the judge's mean below the base model's.
# Where the chip-seconds are of.
PUBLISHED, SLICE = "sd2", "v5e:4x4"


@dataclasses.dataclass(frozen=True)
class Point:
    """An evaluation of a run.

    Attributes:
      iteration: after which it was made; 0 is the base model.
      share: how much of the distance from the base model to real pictures is closed, the mean of
        the sets.
      judge: the mean over the sets of what is never a reward.
    """

    iteration: int
    share: float
    judge: float


def overrides(method: str, rate: float, seed: int, iterations: int) -> dict:
    """What a run's config has changed from `CONFIG`; the rate of a try falls as a whole run's."""
    changes = emoji_runs.overrides(method, rate, seed, iterations)
    return changes | {"optimizer.decay_iterations": ITERATIONS}


def evaluate(output: str, name: str, steps: Sequence[int], changes: dict) -> dict:
    """Judges a run's checkpoints, all methods' by the same sampler: means as of `read_means`."""
    checkpoints = {str(step): f"{os.path.join(output, name)}@{step}" for step in steps}
    folder = os.path.join(output, "evaluations", name)
    asked = emoji_runs.evaluation_arguments(
        folder, checkpoints, emoji_runs.IMAGES_OF_PAIRS, changes
    )
    emoji_runs.run(output, "evaluate", *asked)
    return emoji_runs.read_means(folder)


def mean_of_sets(means: dict[tuple[str, str], float], scorer: str) -> float:
    """A model's mean over the sets."""
    return emoji_runs.mean_of(means, [(name, scorer) for name in SETS])


def choose_rate(output: str, method: str) -> float:
    """The learning rate that a method is raced with: the best of its tries."""
    last = ITERATIONS // 2
    prompts = {f"evaluation.sets.{name}.prompts": TUNING_PROMPTS for name in SETS}
    reached = {}
    for factor in TRIES:
        rate = factor * METHODS[method][1]
        name = f"tries-{method}-{rate:g}"
        emoji_runs.train(output, name, CONFIG, overrides(method, rate, TUNING_SEED, last))
        changes = prompts | {"evaluation.seed": TUNING_SEED}
        reached[rate] = mean_of_sets(evaluate(output, name, [last], changes)[str(last)], REWARD)
    return max(reached, key=reached.get)


def points(means: dict, iterations: Sequence[int]) -> list[Point]:
    """The evaluations of a run.

    Args:
      means: model -> (set, scorer) -> mean. Models are "base", the iterations, and real pictures.
      iterations: those of the checkpoints.
    """
    base, real = means["base"], means["real pictures"]

    def share(model):
        ways = [(name, REWARD) for name in SETS]
        return statistics.mean((model[way] - base[way]) / (real[way] - base[way]) for way in ways)

    evaluated = {0: base} | {step: means[str(step)] for step in iterations}
    return [
        Point(step, share(model), mean_of_sets(model, JUDGE)) for step, model in evaluated.items()
    ]


def iterations_until(found: list[Point], share: float) -> float | None:
    """After how many iterations a share is closed, between two evaluations by a straight line.

    It is None if that is never.
    """
    for before, after in zip(found, found[1:], strict=False):
        if after.share >= share:
            part = (share - before.share) / (after.share - before.share)
            return before.iteration + part * (after.iteration - before.iteration)
    return None


def best_before_a_fall(found: list[Point]) -> float:
    """The largest share of the evaluations before the judge falls below the base model's."""
    best = found[0].share
    for point in found:
        if point.judge < found[0].judge - FALL:
            break
        best = max(best, point.share)
    return best


def passes_of_an_iteration(method: str) -> float:
    """How many forward passes of the denoiser have the operations of an iteration.

    Drawing, the passes without a gradient and the updates are counted, with the text encoder; the
    VAE and the reward models are not, but where a reward's gradient goes through them.
    """
    config = emoji_policy_gradient.get_config(TASK)
    changes = overrides(method, METHODS[method][1], 0, ITERATIONS)
    config.update_from_flattened_dict(changes)
    made = phases.make_phases(phases.plain_experiment(config))
    counted = [phase for phase in made if phase.name != "decode" and "score" not in phase.name]
    of_call = phases.operations(counted)
    operations = sum(phase.repetitions * of_call[phase.name] for phase in counted)
    return operations / describe_model(config.model).network.operations


def seconds_of_an_iteration(output: str, method: str) -> float:
    """The median of a short run, which compiles nothing and saves nothing before its end."""
    changes = overrides(method, METHODS[method][1], 0, TIMED) | {"checkpoint.every": TIMED}
    workdir = emoji_runs.train(output, f"timed-{method}", CONFIG, changes)
    return emoji_runs.seconds_of_an_iteration(workdir)


def published_config(method: str) -> ml_collections.ConfigDict:
    """What a method trains Stable Diffusion 2 with, with as many updates of a picture as in a race.

    The policy gradient draws as in the paper, in 50 guided steps; where any chain will do, it is
    that of `configs/fast.py`.
    """
    config, raced = image_reward.get_config(), emoji_policy_gradient.get_config(TASK)
    config.algorithm = raced.algorithm
    config.algorithm.name = method
    if method != "policy_gradient":
        config.sampler = fast.get_config().sampler
    config.pretraining.weight = 0.0
    config.update_from_flattened_dict(METHODS[method][0])
    for task in config.tasks.values():
        task.group_size, task.normalisation = raced.tasks[TASK].group_size, "group"
    return config


def costs_of(output: str, method: str) -> dict[str, float]:
    """What an iteration takes, and an image of Stable Diffusion 2."""
    bound = needs(published_config(method), PUBLISHED).bound(chips.of_topology(SLICE))
    return {
        "passes": passes_of_an_iteration(method),
        "chip_seconds": 1 / bound,
        "seconds": seconds_of_an_iteration(output, method),
    }


def significant(value: float, digits: int) -> str:
    """A number with so many digits that are not zeros, without an exponent."""
    return f"{float(f'{value:.{digits}g}'):,.12g}"


def interval(values: list[float]) -> str:
    """A mean, and its 95% interval by Student's t where there are several values."""
    mean = significant(statistics.mean(values), 3)
    if len(values) == 1:
        return mean
    error = statistics.stdev(values) / len(values) ** 0.5
    reach = error * scipy.stats.t.ppf(0.975, len(values) - 1)
    return f"{mean} ± {significant(reach, 2)}"


def runs_of(result: dict) -> list[list[Point]]:
    """A method's runs, one for each seed."""
    return [[Point(**point) for point in run] for run in result["runs"].values()]


def cost_row(method: str, result: dict, share: float) -> list[str]:
    """What a method took until a share of the distance was closed, where all runs close it."""
    runs = runs_of(result)
    until = [iterations_until(run, share) for run in runs]
    reached = [count for count in until if count is not None]
    cells = [method, f"{len(reached)} of {len(runs)}"]
    if len(reached) < len(runs):
        return cells + [""] * 4
    of_one = (BATCH, result["passes"], result["seconds"], BATCH * result["chip_seconds"])
    return cells + [interval([count * each for count in reached]) for each in of_one]


def end_row(method: str, result: dict) -> list[str]:
    """How far a method came."""
    runs = runs_of(result)
    measured = (
        [100 * run[-1].share for run in runs],
        [100 * best_before_a_fall(run) for run in runs],
        [run[-1].judge - run[0].judge for run in runs],
    )
    return [method, f"{result['rate']:g}", *map(interval, measured)]


def tables(results: dict) -> str:
    """What is printed."""
    ends = ("share at the end, %", "best before the judge falls, %", "change of the judge")
    rows = [end_row(method, result) for method, result in results.items()]
    made = [table(("method", "learning rate", *ends), rows)]
    costs = ("pictures", "passes", "seconds", "chip-seconds, Stable Diffusion 2 on v5e")
    for name, share in ENOUGH.items():
        rows = [cost_row(method, result, share) for method, result in results.items()]
        made.append(table(("method", f"runs that close {name}", *costs), rows))
    return "\n\n".join(made)


def plot(path: str, results: dict) -> None:
    """Draws each method's mean share of the distance by the passes that it took."""
    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for number, (method, result) in enumerate(results.items()):
        runs = runs_of(result)
        passes = result["passes"] * np.array([point.iteration for point in runs[0]])
        shares = 100 * np.array([[point.share for point in run] for run in runs])
        # There are more methods than colours that are told apart.
        colour, line = f"C{number % COLOURS}", "-" if number < COLOURS else "--"
        axes.plot(passes, shares.mean(0), label=method, color=colour, linestyle=line)
        axes.fill_between(passes, shares.min(0), shares.max(0), alpha=0.15, color=colour)
    axes.set_xlabel("passes of the denoiser")
    axes.set_ylabel("share of the distance to real pictures, %")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)


def keep(path: str, results: dict) -> None:
    """Writes the results, whole."""
    write_whole(epath.Path(path), json.dumps(results, indent=1).encode())


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="where runs and results go")
    parser.add_argument("--seeds", type=int, default=3, help="how often each method is trained")
    parser.add_argument(
        "--methods",
        type=names_of("method", METHODS),
        default=list(METHODS),
        help=f"those to race, separated by commas; all of {', '.join(METHODS)} if not given",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Trains, counts and prints."""
    flags = parse_arguments(arguments)
    path = os.path.join(flags.output, "results.json")
    results = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            results = json.load(file)
    for method in flags.methods:
        settings = METHODS[method][0] | {"iterations": ITERATIONS, "batch_size": BATCH}
        result = results.setdefault(method, {"settings": settings, "runs": {}})
        if result.get("settings") != settings:
            raise SystemExit(f"{path} has runs of {method} with other settings: take another one.")
        if "rate" not in result:
            result["rate"] = choose_rate(flags.output, method)
        for seed in range(flags.seeds):
            if str(seed) in result["runs"]:
                continue
            name = f"{method}-{seed}"
            changes = overrides(method, result["rate"], seed, ITERATIONS)
            emoji_runs.train(flags.output, name, CONFIG, changes)
            means = evaluate(flags.output, name, STEPS, {"evaluation.seed": 1})
            result["runs"][str(seed)] = list(map(dataclasses.asdict, points(means, STEPS)))
            keep(path, results)
    for method in flags.methods:
        if "seconds" not in results[method]:
            results[method] |= costs_of(flags.output, method)
            keep(path, results)
    whole = {method: result for method, result in results.items() if "seconds" in result}
    print(tables(whole))
    plot(os.path.join(flags.output, "race.svg"), whole)


if __name__ == "__main__":
    main()
