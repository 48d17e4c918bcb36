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
from diffusionrl_jax.evaluation.statistics import Measurement
from diffusionrl_jax.mistakes import UserError

CSV = "results.csv"  # What a comparison's file is called.
LEGEND = (
    "95% intervals in brackets, by a bootstrap over prompts. Parity scores are minus the "
    "statistical parity: 0 is best."
)
TITLES = {
    "win_rate": "Head to head with the base model: share of images that score higher, ties half",
    "distance_closed": "Share of the distance from the base model to real pictures",
}


def cell(row: Measurement | None) -> str:
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


def markdown(rows: Sequence[Measurement], prompts: Mapping[str, Sequence[str]]) -> str:
    """Returns the whole comparison as Markdown.

    Args:
      rows: the measurements, from `statistics.compare`.
      prompts: set -> the prompt of each image.
    """
    by_key = {(row.measure, row.model, row.set, row.scorer): row for row in rows}
    parts = [LEGEND]
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


def write_csv(path: str | epath.Path, rows: Sequence[Any], kind: type = Measurement) -> None:
    """Writes one line for each measurement. A NaN becomes an empty field.

    Args:
      path: the file to write.
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
    write_whole(path, file.getvalue().encode())


def read_csv(path: str | epath.Path) -> list[Measurement]:
    """Reads what `write_csv` wrote.

    Raises:
      UserError: the file holds something else.
    """
    number = lambda text: float(text) if text else math.nan
    rows = csv.DictReader(io.StringIO(epath.Path(path).read_text(), newline=""))
    try:
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
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no comparison of models ({error!r}).") from error
