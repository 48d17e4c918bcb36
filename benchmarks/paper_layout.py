"""Lays our figures out as the paper's tables are, with the paper's own beside them."""

import statistics
from collections.abc import Mapping, Sequence

import emoji_runs
from emoji_runs import BATCH, IMAGES, MEASURES
from paper_numbers import HOURS, NAMES, RANKS, WINS, ScoreTable

from diffusionrl_jax.monitoring.markdown import table

ENOUGH = 0.98  # Of the gain of a run's best evaluation.
# The judges that the preference is not rewarded by.
APART = (
    *((name, "recognition") for name in IMAGES),
    *((name, "independent_parity") for name in ("portraits", "unseen_portraits")),
)

# A difference or a share of two models, and its 95% interval.
Interval = tuple[float, float, float]


def score_table(of: ScoreTable, means: Sequence[Mapping], methods: Sequence[str]) -> str:
    """A table of mean scores, ours beside the paper's.

    Args:
      of: which table.
      means: of each seed, from `emoji_runs.read_means`.
      methods: those that were trained.
    """
    head = ["method", "in the paper"]
    for column in of.columns:
        head += ["/".join(column.measure), f"the paper's {column.title}"]
    rows = []
    for name in ("base", *methods, "real pictures"):
        # What no seed trains is the same in all.
        seeds = means if name in methods else means[:1]
        row = [name, NAMES.get(name, "")]
        for column in of.columns:
            found = [column.sign * one[name][column.measure] for one in seeds]
            theirs = column.values.get(name)
            row += [emoji_runs.mean_and_range(found), "" if theirs is None else f"{theirs:.3f}"]
        rows.append(row)
    return f"{of.caption} Ranges are over seeds.\n\n{table(head, rows)}"


def win_share(rates: Mapping[tuple, Interval], model: str, against: str) -> float:
    """How often a model's pictures score higher than another's, the mean over the sets.

    Args:
      rates: (model, against, set, scorer) -> share; each pair is there in one order.
      model, against: the two models.
    """
    shares = []
    for name, scorer in MEASURES["preference"]:
        there = rates.get((model, against, name, scorer))
        shares.append(there[0] if there else 1 - rates[against, model, name, scorer][0])
    return statistics.mean(shares)


def ranking(rates: Sequence[Mapping[tuple, Interval]], methods: Sequence[str]) -> str:
    """The methods, ranked by how often each wins against the other ones.

    Args:
      rates: of each seed, as in `win_share`.
      methods: those that were trained.
    """
    shares = lambda model, against: [win_share(one, model, against) for one in rates]
    percent = lambda values: emoji_runs.mean_and_range([100 * value for value in values], 0)
    others = lambda method: [one for one in methods if one != method]
    overall = {
        method: statistics.mean(share for one in others(method) for share in shares(method, one))
        for method in methods
    }
    ranked = sorted(methods, key=overall.__getitem__, reverse=True)
    head = ["method", "in the paper", "rank", "the paper's, by people", "against base"]
    head += ["the paper's, by people", *(f"against {method}" for method in ranked)]
    rows = []
    for rank, method in enumerate(ranked, 1):
        theirs = f"{100 * WINS[method]:.1f}" if method in WINS else ""
        row = [method, NAMES[method], str(rank), str(RANKS[method])]
        row += [percent(shares(method, "base")), theirs]
        rows.append(row + ["" if one == method else percent(shares(method, one)) for one in ranked])
    return (
        "How often a model's picture scores higher by the preference model than another's of the "
        "same prompt and noise, in %, ties half. The rank is by the mean over the other methods. "
        f"Ranges are over seeds.\n\n{table(head, rows)}"
    )


def converged(gains: Mapping[int, float]) -> int | None:
    """After which iteration a run has converged; None if it is never better than the base model.

    It is that of the first evaluation that has `ENOUGH` of the gain of the best one.

    Args:
      gains: what each evaluation is above the base model, by the iteration.
    """
    best = max(gains.values())
    if best <= 0:
        return None
    return min(step for step, gain in gains.items() if gain >= ENOUGH * best)


def convergence_table(runs: Mapping[str, Sequence[tuple[Mapping[int, float], float]]]) -> str:
    """What each method takes until it has converged.

    Args:
      runs: of each method, each run's gains, as in `converged`, and its seconds an iteration.
    """
    head = ["method", "in the paper", "iterations", "pictures", "seconds", "gain of the best"]
    rows = []
    for method, found in runs.items():
        counts = [converged(gains) for gains, _ in found]
        row = [method, NAMES[method]]
        if None in counts:
            row += [f"no gain in {counts.count(None)} of {len(counts)} runs"] * 3
        else:
            seconds = [count * each for count, (_, each) in zip(counts, found, strict=True)]
            pictures = [count * BATCH for count in counts]
            row += [emoji_runs.mean_and_range(one, 0) for one in (counts, pictures, seconds)]
        best = [max(gains.values()) for gains, _ in found]
        rows.append([*row, emoji_runs.mean_and_range(best), HOURS[method]])
    return (
        "What a method takes until it has converged: until the first evaluation that has "
        f"{ENOUGH:.0%} of the gain in preference, over both sets, of its best one. Seconds are of "
        "training alone, without compilation. Ranges are over seeds.\n\n"
        f"{table([*head, 'hours in the paper, on 128 A100'], rows)}"
    )


def first_below(found: Mapping[int, Sequence[Interval]]) -> int | None:
    """The first iteration after which every seed's whole interval is below 0; None if none is."""
    below = [step for step, seeds in found.items() if all(high < 0 for *_, high in seeds)]
    return min(below, default=None)


def pretraining_table(found: Sequence[Mapping[tuple, Interval]], steps: Sequence[int]) -> str:
    """What is lost without the pretraining loss, and when.

    Args:
      found: of each seed, (model, against, set, scorer) -> the difference, of the models
        "without-STEP" and "with-STEP".
      steps: after which iterations they were judged.
    """
    lines, rows = [], []
    for measure in (*MEASURES["preference"], *APART):
        pairs = {
            step: [one[f"without-{step}", f"with-{step}", *measure] for one in found]
            for step in steps
        }
        cells = [
            "; ".join(f"{value:+.3f} [{low:+.3f}, {high:+.3f}]" for value, low, high in seeds)
            for seeds in pairs.values()
        ]
        name = "/".join(measure)
        rows.append([name if measure in APART else f"{name}, rewarded", *cells])
        if measure in APART:
            step = first_below(pairs)
            when = "at no checkpoint" if step is None else f"first after {step} iterations"
            lines.append(f"- {name}: {when}")
    head = ["without less with, after", *(f"{step} iterations" for step in steps)]
    return (
        "The policy gradient without the pretraining loss, less the one with it, on the same "
        "prompts and noise; seeds are separated by semicolons, and in brackets are 95% intervals "
        "over prompts. The paper has no figures: without the loss its pictures turn grainy.\n\n"
        f"{table(head, rows)}\n\n"
        "A judge is below where each seed's whole interval is below 0:\n\n" + "\n".join(lines)
    )
