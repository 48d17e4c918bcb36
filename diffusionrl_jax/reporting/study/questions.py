"""What each rater is shown: which pairs, in which order, and which picture on which side."""

import dataclasses

import numpy as np

from diffusionrl_jax.reporting.study.records import SCRAMBLED, A, B, Study

LEFT, RIGHT, TIE = "left", "right", "tie"
CHOICES = (LEFT, RIGHT, TIE)


@dataclasses.dataclass(frozen=True)
class Question:
    """Two pictures side by side.

    Attributes:
      pair: the number of their pair.
      left, right: which picture of the pair, `A`, `B` or `SCRAMBLED`, is on which side.
    """

    pair: int
    left: str
    right: str

    @property
    def is_check(self) -> bool:
        """Whether the answer is known: a scrambled picture is not preferred."""
        return SCRAMBLED in (self.left, self.right)

    def chosen(self, choice: str) -> str:
        """Returns what was chosen: `A`, `B`, `SCRAMBLED` or `TIE`.

        Args:
          choice: one of `CHOICES`.
        """
        return {LEFT: self.left, RIGHT: self.right, TIE: TIE}[choice]


def ask(study: Study, rater: int, count: int = 0) -> list[Question]:
    """Returns a rater's questions, in the order in which they are asked.

    They depend on the study's seed and on the rater's number alone. `A` is on the left in one half
    of the pairs. If not all pairs are asked, raters with consecutive numbers are given consecutive
    pairs of one shuffled order, so that each pair is asked as often as any other, give or take one.
    The attention checks are spread over the whole, at random places.

    Args:
      study: the study.
      rater: the rater's number, from 0.
      count: how many pairs are asked; 0 means all.
    """
    everything = len(study.pairs)
    count = min(count or everything, everything)
    order = np.random.default_rng(study.seed).permutation(everything)
    generator = np.random.default_rng([study.seed, 1 + rater])
    pairs = generator.permutation(order[(rater * count + np.arange(count)) % everything])
    swapped = generator.permutation(np.arange(count) % 2)
    questions = [
        Question(int(pair), *((B, A) if other_way else (A, B)))
        for pair, other_way in zip(pairs, swapped, strict=True)
    ]
    # From the last to the first, so that the places before them stay.
    parts = np.array_split(np.arange(count), max(1, len(study.checks)))
    checks = generator.permutation(np.asarray(study.checks, int))
    for check, part in reversed(list(zip(checks, parts, strict=False))):
        picture, on_left = (A, B)[generator.integers(2)], generator.integers(2)
        sides = (picture, SCRAMBLED) if on_left else (SCRAMBLED, picture)
        place = int(generator.choice(part)) + 1 if part.size else count
        questions.insert(place, Question(int(check), *sides))
    return questions
