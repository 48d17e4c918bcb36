"""What the paper (2401.12244) prints, and which of our figures stand beside it."""

import dataclasses
from collections.abc import Mapping

# What the paper calls them, in its order.
NAMES = {
    "base": "Stable Diffusion 2",
    "refl": "ReFL",
    "raft": "RAFT",
    "draft_k": "DRaFT",
    "reward_weighted": "reward-weighted",
    "policy_gradient": "its own",
}


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the paper's, beside which one of ours stands.

    Attributes:
      title: what the paper measures, and on which prompts.
      measure: the evaluation's set and scorer that stand for it.
      values: the paper's numbers, by our names of the methods.
      sign: -1 where the paper prints what our scorer has the minus of.
    """

    title: str
    measure: tuple[str, str]
    values: Mapping[str, float]
    sign: int = 1


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """A table of mean scores.

    Attributes:
      task: what the methods are trained on.
      caption: what is said above it.
      columns: the columns.
    """

    task: str
    caption: str
    columns: tuple[Column, ...]

    @property
    def methods(self) -> list[str]:
        """Those that are trained for it."""
        return [name for name in NAMES if name in self.columns[0].values and name != "base"]


def _by_method(*values: float) -> dict[str, float]:
    """Six numbers by method, or four where ReFL and DRaFT are left out."""
    few = ("base", "raft", "reward_weighted", "policy_gradient")
    return dict(zip(NAMES if len(values) == len(NAMES) else few, values, strict=True))


SCORE_TABLES = {
    "1": ScoreTable(
        "preference",
        "Mean scores, higher is better. The recogniser, which is never rewarded, stands where the "
        "paper has the aesthetic score; new pairs where it has DiffusionDB, unseen ones where it "
        "has PartiPrompts.",
        (
            Column(
                "ImageReward, DiffusionDB",
                ("new_pairs", "preference"),
                _by_method(0.170, 1.290, 0.338, 0.818, 0.438, 0.845),
            ),
            Column(
                "aesthetic, DiffusionDB",
                ("new_pairs", "recognition"),
                _by_method(5.783, 5.845, 5.881, 5.645, 5.821, 5.918),
            ),
            Column(
                "ImageReward, PartiPrompts",
                ("unseen_pairs", "preference"),
                _by_method(0.414, 0.832, 0.504, 0.632, 0.624, 0.731),
            ),
            Column(
                "aesthetic, PartiPrompts",
                ("unseen_pairs", "recognition"),
                _by_method(5.269, 5.402, 5.413, 5.279, 5.363, 5.477),
            ),
        ),
    ),
    "3": ScoreTable(
        "fairness",
        "Statistical parity, lower is better. Occupations that are trained on stand where the "
        "paper has its occupations, held-out ones where it has HRS-Bench.",
        (
            Column(
                "parity, occupations",
                ("portraits", "parity"),
                _by_method(0.556, 0.464, 0.562, 0.453),
                sign=-1,
            ),
            Column(
                "parity, HRS-Bench",
                ("unseen_portraits", "parity"),
                _by_method(0.576, 0.527, 0.527, 0.498),
                sign=-1,
            ),
        ),
    ),
    "4": ScoreTable(
        "compositionality",
        "Detection scores, higher is better. Unseen pairs are of objects that the base model never "
        "saw in a pair, new ones of objects that it saw in others.",
        (
            Column(
                "detection, unseen objects",
                ("unseen_pairs", "detection"),
                _by_method(0.102, 0.094, 0.136, 0.231),
            ),
            Column(
                "detection, seen objects",
                ("new_pairs", "detection"),
                _by_method(0.094, 0.092, 0.152, 0.221),
            ),
        ),
    ),
}
# Table 2: the ranks that people gave, and how often they preferred a model to Stable Diffusion 2.
RANKS = {"refl": 4, "raft": 5, "draft_k": 3, "reward_weighted": 2, "policy_gradient": 1}
WINS = {"policy_gradient": 0.803}
# Table 6: hours on 128 A100 until a method had converged.
HOURS = {
    "refl": "6.9",
    "raft": "5.5, diverged",
    "draft_k": "8.4",
    "reward_weighted": "33.8",
    "policy_gradient": "12.1",
}
