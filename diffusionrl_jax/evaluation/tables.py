"""Writes a comparison as Markdown tables, to be read, and as a CSV file, to be computed with."""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import tabulate
from etils import epath

from diffusionrl_jax.data.files import write_whole
from diffusionrl_jax.evaluation.categories import CategoryMean
from diffusionrl_jax.evaluation.differences import Difference
from diffusionrl_jax.evaluation.statistics import Measurement
from diffusionrl_jax.mistakes import UserError

CSV = "results.csv"  # What a comparison's file is called.
LEGEND = (
    "95% intervals in brackets, by a bootstrap over prompts. Parity scores are minus the "
    "statistical parity: 0 is best. m pictures of a prompt that are drawn fairly of K classes are "
    "at about -sqrt((1 - 1/K) / m)."
)
TITLES = {
    "win_rate": "Head to head with the base model: share of images that score higher, ties half",
    "distance_closed": "Share of the distance from the base model to real pictures",
}


def cell(row: Measurement | Difference | CategoryMean | None) -> str:
    """Formats a value with its interval, as "0.512 [0.480, 0.550]"; None becomes an empty cell."""
    if row is None:
        return ""
    if math.isnan(row.low):
        return f"{row.value:.3f}"
    return f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table with aligned columns."""
    return tabulate.tabulate(lines, header, tablefmt="github", disable_numparse=True)


def _unique(values) -> list[str]:
    return list(dict.fromkeys(values))


def markdown(
    rows: Sequence[Measurement], prompts: Mapping[str, Sequence[str]], made: str = ""
) -> str:
    """Returns the whole comparison as Markdown.

    Args:
      rows: the measurements, from `statistics.compare`.
      prompts: set -> the prompt of each image.
      made: a paragraph that says how the numbers were made.
    """
    by_key = {(row.measure, row.model, row.set, row.scorer): row for row in rows}
    parts = [LEGEND, made] if made else [LEGEND]
    for name, texts in prompts.items():
        chosen = [row for row in rows if row.measure == "mean" and row.set == name]
        scorers = _unique(row.scorer for row in chosen)
        lines = [
            [model, *(cell(by_key.get(("mean", model, name, scorer))) for scorer in scorers)]
            for model in _unique(row.model for row in chosen)
        ]
        parts.append(f"## {name}: {len(texts)} images of {len(set(texts))} prompts")
        parts.append(markdown_table([name, *scorers], lines))
    for measure, title in TITLES.items():
        chosen = [row for row in rows if row.measure == measure]
        if not chosen:
            continue
        models = _unique(row.model for row in chosen)
        lines = [
            [name, scorer, *(cell(by_key.get((measure, model, name, scorer))) for model in models)]
            for name, scorer in dict.fromkeys((row.set, row.scorer) for row in chosen)
        ]
        parts += [f"## {title}", markdown_table(["set", "scorer", *models], lines)]
    return "\n\n".join(parts) + "\n"


def differences_markdown(found: Sequence[Difference]) -> str:
    """Returns what differs between models as Markdown, "" if there is nothing to compare.

    Args:
      found: from `differences.differences`.
    """
    if not found:
        return ""
    tested = sum(not math.isnan(one.p) for one in found)
    plural = "s" if tested != 1 else ""
    lines = [
        [
            *(one.set, one.scorer, f"{one.model} - {one.against}", cell(one)),
            *("" if math.isnan(p) else f"{p:.2g}" for p in (one.p, one.p_holm)),
        ]
        for one in found
    ]
    header = ["set", "scorer", "models", "difference", "p", "p by Holm"]
    text = (
        "## Differences on the same prompts and noise\n\n"
        "95% intervals by a bootstrap over prompts, p by its standard error; the last column is "
        f"corrected for all {tested} comparison{plural}."
    )
    return f"{text}\n\n{markdown_table(header, lines)}\n"


def categories_markdown(found: Sequence[CategoryMean]) -> str:
    """Returns scores by category as Markdown, a table for each set and column; "" if none.

    Args:
      found: from `categories.by_category`.
    """
    parts = []
    for name, column in dict.fromkeys((one.set, one.column) for one in found):
        chosen = [one for one in found if (one.set, one.column) == (name, column)]
        by_key = {(one.category, one.scorer, one.model): one for one in chosen}
        models = _unique(one.model for one in chosen)
        lines = []
        for category, scorer in dict.fromkeys((one.category, one.scorer) for one in chosen):
            row = [by_key[category, scorer, model] for model in models]
            images = max(one.images for one in row)
            lines.append([category, scorer, str(images), *map(cell, row)])
        parts.append(f"## {name} by {column}")
        parts.append(markdown_table([column, "scorer", "images", *models], lines))
    return "\n\n".join(parts) + "\n" if parts else ""


def as_csv(rows: Sequence[Any], kind: type = Measurement) -> bytes:
    """Returns a CSV file with one line for each measurement. A NaN becomes an empty field.

    Args:
      rows: the measurements.
      kind: their dataclass, whose fields are the columns.
    """
    fields = [field.name for field in dataclasses.fields(kind)]
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, fields)
    writer.writeheader()
    for row in rows:
        values = dataclasses.asdict(row)
        empty = lambda value: isinstance(value, float) and math.isnan(value)
        writer.writerow({name: "" if empty(v) else v for name, v in values.items()})
    return file.getvalue().encode()


def write_csv(path: str | epath.Path, rows: Sequence[Any], kind: type = Measurement) -> None:
    """Writes `as_csv` of the same arguments to a file."""
    write_whole(path, as_csv(rows, kind))


def read_csv(path: str | epath.Path) -> list[Measurement]:
    """Reads what `write_csv` wrote.

    Raises:
      UserError: the file holds something else.
    """
    number = lambda text: float(text) if text else math.nan
    content = epath.Path(path).read_bytes()
    try:
        rows = csv.DictReader(io.StringIO(content.decode(), newline=""))
        return [
            Measurement(
                row["model"],
                row["set"],
                row["measure"],
                row["scorer"],
                number(row["value"]),
                number(row["low"]),
                number(row["high"]),
                int(row["images"]),
            )
            for row in rows
        ]
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} is no comparison of models ({error!r}).") from error
