"""Chooses the pictures of a report: through training, and at the ends of a reward."""

import base64
import dataclasses
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from diffusionrl_jax.evaluation.evaluator import SHOWN_IMAGES, evenly
from diffusionrl_jax.evaluation.records import (
    LOSSLESS_PIXELS,
    Record,
    mean_by_prompt,
)
from diffusionrl_jax.reporting.reading import RunData


@dataclasses.dataclass(frozen=True)
class Detail:
    """How much of the pictures a page has room for.

    Attributes:
      pixels: of a picture's longer side.
      quality: JPEG's.
      steps: how many evaluations are shown through training.
      prompts: how many prompts of each set are shown through training.
      ends: how many pictures are shown at each end of a reward, and prompts that gained or lost.
    """

    pixels: int
    quality: int
    steps: int
    prompts: int
    ends: int


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture in a page.

    Attributes:
      source: its data, as a URI.
      caption: what is written below.
      step: the iteration that it was drawn after.
    """

    source: str
    caption: str
    step: int


@dataclasses.dataclass(frozen=True)
class Change:
    """How much a prompt has gained.

    Attributes:
      prompt: the prompt.
      before, after: its mean scores.
      pictures: one of its pictures before and after; empty where it was not kept.
    """

    prompt: str
    before: float
    after: float
    pictures: list[Picture]


def as_source(content: bytes, detail: Detail) -> str:
    """Returns a picture's file as a data URI. Small pictures stay what they are.

    Args:
      content: a PNG or JPEG file.
      detail: what there is room for.
    """
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
    if max(image.size) > min(detail.pixels, LOSSLESS_PIXELS):
        image.thumbnail((detail.pixels, detail.pixels))
        buffer, kind = io.BytesIO(), "jpeg"
        image.convert("RGB").save(buffer, "JPEG", quality=detail.quality)
        content = buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _picture(record: Record, name: str, index: int, caption: str, detail: Detail) -> list[Picture]:
    """Returns a picture of an evaluation, or nothing where it was not kept."""
    content = record.pictures.get(name, {}).get(index)
    return [Picture(as_source(content, detail), caption, record.step)] if content else []


def through_training(run: RunData, detail: Detail) -> dict[str, list[tuple[str, list[Picture]]]]:
    """Returns pictures of the same prompts and noise through training.

    Returns:
      Set -> prompts, each with a picture for each of some evaluations, the first and the last among
      them.
    """
    if not run.evaluations or not detail.prompts:
        return {}
    count = len(run.evaluations)
    steps = min(count, detail.steps)
    chosen = np.linspace(0, count - 1, steps).round().astype(int) if steps > 1 else [count - 1]
    found = {}
    for name, prompts in run.evaluations[-1].prompts.items():
        shown = evenly(len(prompts), SHOWN_IMAGES)
        rows = []
        for index in shown[evenly(len(shown), detail.prompts)].tolist():
            pictures = []
            for step in chosen:
                record = run.evaluations[step]
                if record.prompts.get(name) == prompts:
                    caption = f"iteration {record.step}"
                    pictures += _picture(record, name, index, caption, detail)
            if pictures:
                rows.append((prompts[index], pictures))
        if rows:
            found[name] = rows
    return found


def ends(record: Record, name: str, scorer: str, detail: Detail) -> list[tuple[str, list[Picture]]]:
    """Returns a set's pictures with the lowest, the middle and the highest scores.

    Each is of another prompt while there are others.

    Args:
      record: an evaluation.
      name, scorer: the set, and what it is judged by.
      detail: how many there is room for.
    """
    scores, prompts = record.scores[name][scorer], record.prompts[name]
    there = [index for index in record.pictures.get(name, {}) if math.isfinite(scores[index])]
    order = sorted(there, key=lambda index: (float(scores[index]), index))
    if not order or not detail.ends:
        return []
    middle = len(order) // 2
    from_middle = sorted(order, key=lambda index: abs(order.index(index) - middle))
    found = []
    for title, candidates in (("worst", order), ("median", from_middle), ("best", order[::-1])):
        chosen = _different(candidates, prompts, detail.ends)
        pictures = []
        for index in chosen:
            caption = f"{scores[index]:.3g}: {prompts[index]}"
            pictures += _picture(record, name, index, caption, detail)
        found.append((title, pictures))
    return found


def _different(candidates: Sequence[int], prompts: Sequence[str], count: int) -> list[int]:
    """Returns the first candidates of different prompts, and further ones if these are too few."""
    first = list({prompts[index]: index for index in reversed(candidates)}.values())
    rank = {index: place for place, index in enumerate(candidates)}
    first = sorted(first, key=rank.__getitem__)
    others = [index for index in candidates if index not in set(first)]
    return [*first, *others][:count]


def changes(
    run: RunData, name: str, scorer: str, detail: Detail
) -> tuple[list[Change], list[Change]]:
    """Returns the prompts of a set that have gained most and lost most, by a scorer.

    They are compared between the run's first evaluation, of the base model, and its last.
    """
    first, last = run.evaluations[0], run.evaluations[-1]
    if first.prompts.get(name) != last.prompts[name] or first.step == last.step:
        return [], []
    prompts, after = last.prompts[name], last.scores[name][scorer]
    before = first.scores[name].get(scorer)
    if before is None:
        return [], []
    gains = mean_by_prompt(prompts, after - before)
    order = sorted(gains, key=gains.__getitem__)
    means = mean_by_prompt(prompts, before)

    def change(prompt: str) -> Change:
        index = prompts.index(prompt)
        pictures = []
        for record in (first, last):
            caption = f"iteration {record.step}"
            pictures += _picture(record, name, index, caption, detail)
        return Change(prompt, means[prompt], means[prompt] + gains[prompt], pictures)

    count = max(detail.ends, 1)
    gained = [change(prompt) for prompt in reversed(order[-count:]) if gains[prompt] > 0]
    lost = [change(prompt) for prompt in order[:count] if gains[prompt] < 0]
    return gained, lost
