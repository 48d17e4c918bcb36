"""Writes what a study has found as a page and as a table."""

import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from diffusionrl_jax.data.files import write_whole
from diffusionrl_jax.data.prompt_sources import prompt_note
from diffusionrl_jax.evaluation import tables
from diffusionrl_jax.evaluation.statistics import OVERALL
from diffusionrl_jax.reporting.study import findings, pages
from diffusionrl_jax.reporting.study.findings import (
    AGREEMENT,
    ALPHA,
    EVERYBODY,
    PEOPLE,
    PREFERENCE,
    Attention,
    Finding,
)
from diffusionrl_jax.reporting.study.records import A, B, Study, picture_path
from diffusionrl_jax.reporting.study.votes import Vote

SHOWN_PAIRS = 4  # How many pairs are shown that people prefer most in b, and in a.


def write_report(
    output: epath.Path,
    folder: epath.Path,
    study: Study,
    votes: Sequence[Vote],
    attention: Sequence[Attention],
) -> list[Finding]:
    """Writes report.html and report.csv, and returns what is in them.

    Args:
      output: an existing folder.
      folder: the study's folder.
      study: the study.
      votes: all votes.
      attention: of all raters.
    """
    found = findings.find(study, votes, attention)
    page = pages.render(
        "report.html",
        study=study,
        written=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        found=_by_key(found),
        groups=list(dict.fromkeys((row.group, row.category) for row in found)),
        scorers=list(study.pairs[0].scores),
        note=prompt_note(study.prompts),
        attention=[one for one in attention if one.answered or one.checks],
        extremes=_extremes(folder, study, votes, attention),
        percent=percent,
        **{"OVERALL": OVERALL, "PREFERENCE": PREFERENCE, "ALPHA": ALPHA, "AGREEMENT": AGREEMENT},
        **{"PEOPLE": PEOPLE, "EVERYBODY": EVERYBODY},
    )
    write_whole(output / "report.html", page.encode())
    tables.write_csv(output / "report.csv", found, Finding)
    return found


def percent(row: Finding | None) -> str:
    """Formats a share with its interval, as "63% [57, 69]"; what is missing becomes empty."""
    if row is None or np.isnan(row.value):
        return ""
    share = f"{100 * row.value:.0f}%"
    return share if np.isnan(row.low) else f"{share} [{100 * row.low:.0f}, {100 * row.high:.0f}]"


def sentence(study: Study, found: Sequence[Finding]) -> str:
    """Returns the result in one line."""
    row = _by_key(found).get((OVERALL, "", PREFERENCE, PEOPLE))
    if row is None:
        return "There are no votes yet."
    return (
        f"People prefer {study.b} to {study.a} in {percent(row)} of {row.votes} votes on "
        f"{row.pairs} pairs (ties half, 95% interval)."
    )


def _by_key(found: Sequence[Finding]) -> dict[tuple[str, ...], Finding]:
    return {(row.group, row.category, row.measure, row.judge): row for row in found}


def _extremes(
    folder: epath.Path, study: Study, votes: Sequence[Vote], attention: Sequence[Attention]
) -> dict[str, list[dict[str, Any]]]:
    """Returns the pairs of which people like b, and a, most, with their pictures."""
    counting = {one.rater.number for one in attention if one.counts}
    counted = [vote for vote in votes if vote.rater in counting and not vote.question.is_check]
    by_pair: dict[int, list[float]] = {}
    for vote, value in zip(counted, findings.preferences(counted), strict=True):
        by_pair.setdefault(vote.pair, []).append(float(value))
    # As if everybody had cast half a vote for each more, so that two votes of two weigh less than
    # five of five.
    liked = lambda pair: (sum(by_pair[pair]) + 0.5) / (len(by_pair[pair]) + 1)
    order = sorted(by_pair, key=lambda pair: (-liked(pair), pair))
    described = lambda pair: {
        "prompt": study.pairs[pair].prompt,
        "value": np.mean(by_pair[pair]),
        "votes": len(by_pair[pair]),
        **{name: pages.data_address(picture_path(folder, name, pair)) for name in (A, B)},
    }
    of_b = [pair for pair in order[:SHOWN_PAIRS] if liked(pair) > 0.5]
    of_a = [pair for pair in order[: -SHOWN_PAIRS - 1 : -1] if liked(pair) < 0.5]
    return {study.b: list(map(described, of_b)), study.a: list(map(described, of_a))}
