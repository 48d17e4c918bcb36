"""Makes a page of runs that holds all that it shows."""

import importlib.resources
from collections.abc import Sequence
from typing import Any

import jax
import jinja2
from absl import logging
from etils import epath

from diffusionrl_jax import reporting
from diffusionrl_jax.data.files import readable_size, write_whole
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.reporting import curves, gallery, plots, summary
from diffusionrl_jax.reporting.curves import Plot
from diffusionrl_jax.reporting.gallery import Detail
from diffusionrl_jax.reporting.reading import RunData, as_json, read_runs
from diffusionrl_jax.reporting.summary import Table
from diffusionrl_jax.runs.trained import differing_fields

MOST_BYTES = 10_000_000
# The first that fits into a page is taken.
DETAILS = (
    Detail(256, 85, 10, 8, 4),
    Detail(256, 80, 8, 4, 3),
    Detail(192, 80, 6, 4, 2),
    Detail(160, 75, 5, 3, 1),
    Detail(128, 70, 4, 2, 1),
    Detail(96, 60, 3, 1, 1),
    Detail(64, 50, 2, 1, 0),
    Detail(64, 50, 2, 0, 0),
)


def write_report(workdirs: Sequence[str], output: epath.Path) -> None:
    """Writes a page of runs: one HTML file below `MOST_BYTES`, which needs no network.

    Args:
      workdirs: the runs' folders.
      output: the file to write.

    Raises:
      UserError: a folder is no run, or there are too many runs for one page.
    """
    text = make_report(read_runs(workdirs))
    write_whole(output, text.encode())
    logging.info("Wrote %s (%s)", output, readable_size(len(text.encode())))


def report_run(workdir: str) -> None:
    """Writes report.html into a run's own folder, by the first process alone.

    A page that cannot be written, because a disk is full for example, ends no run: it is logged.
    """
    if jax.process_index():
        return
    try:
        write_report([workdir], epath.Path(workdir) / "report.html")
    except (UserError, OSError) as error:
        logging.warning("The report is not written: %s", error)
    except Exception:  # It is a fault of ours, or of a bucket's library.
        logging.exception("The report is not written.")


def make_report(runs: Sequence[RunData]) -> str:
    """Returns the page's text, with as many pictures as there is room for.

    Raises:
      UserError: there are too many runs for one page.
    """
    shown = _plots(runs)
    for detail in DETAILS:
        text = _page(runs, shown, detail)
        if len(text.encode()) < MOST_BYTES:
            return text
    raise UserError(
        f"A page of {len(runs)} runs is larger than {readable_size(MOST_BYTES)} even without "
        "pictures: give fewer to --run."
    )


def _plots(runs: Sequence[RunData]) -> dict[str, Any]:
    """Returns the parts of a page that hold plots of all runs, and the speed's."""
    parts = [
        ("rewards", "Rewards", "", curves.reward_plots(runs)),
        ("judges", "Judges", "Scores of the evaluation sets.", curves.judge_plots(runs)),
        (
            "fooled",
            "Not fooled",
            "What should not fall, or run away, while the rewards rise. Diversity is the mean "
            "distance of a prompt's pictures, in a CLIP's embedding where a scorer has one, "
            "and else of their pixels.",
            curves.watch_plots(runs),
        ),
        (
            "frontier",
            "Reward against distance",
            "What was gained for how far the model has gone from the base model.",
            curves.frontier_plots(runs),
        ),
    ]
    phases = [(run.name, summary.seconds_by_phase(run)) for run in runs]
    title = "seconds of an iteration"
    speed = curves.speed_plots(runs)
    if any(seconds for _, seconds in phases):
        speed.append(Plot(title, "by phase, on average", plots.bars(title, phases)))
    names = ("id", "title", "note", "plots")
    return {"curves": [dict(zip(names, part, strict=True)) for part in parts], "speed": speed}


def _page(runs: Sequence[RunData], shown: dict[str, Any], detail: Detail) -> str:
    # All but the plots is escaped, names and prompts among it.
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    source = importlib.resources.files(reporting).joinpath("report.html").read_text()
    names = [run.name for run in runs]
    return environment.from_string(source).render(
        title=f"Report of {', '.join(names)}",
        runs=[_run(number, run, detail) for number, run in enumerate(runs)],
        what=_side_by_side(names, [summary.what_was_trained(run) for run in runs]),
        cost=_side_by_side(names, [summary.cost(run) for run in runs]),
        differences=[
            f"{run.name}: {line}"
            for run in runs[1:]
            for line in differing_fields(_without_plan(runs[0]), _without_plan(run))
        ],
        pixelated=all(map(_is_small, runs)),
        **shown,
    )


def _side_by_side(names: Sequence[str], columns: Sequence[list[tuple[str, str]]]) -> Table:
    """Returns a table with a row for each name of what is said, and a column for each run."""
    rows = curves.unique(name for column in columns for name, _ in column)
    cells = [[row, *(dict(column).get(row, "") for column in columns)] for row in rows]
    return Table("", ["", *names], cells)


def _without_plan(run: RunData) -> dict[str, Any]:
    """Returns a run's config without what was chosen for the fields that it leaves open."""
    return {name: value for name, value in run.config.items() if name != "plan"}


def _is_small(run: RunData) -> bool:
    """Returns whether a run's pictures are so small that they are shown by their pixels."""
    pictures = (
        picture
        for record in run.evaluations[-1:]
        for kept in record.pictures.values()
        for picture in kept.values()
    )
    content = next(pictures, b"")
    return content.startswith(b"\x89PNG")


def _run(number: int, run: RunData, detail: Detail) -> dict[str, Any]:
    """Returns what a page shows of one run alone."""
    through = gallery.through_training(run, detail)
    drawn = (pictures for rows in through.values() for _, pictures in rows)
    return {
        "data": run,
        "colour": plots.colour(number),
        "config": as_json(run.config),
        "warnings": summary.warnings(run),
        "through": through,
        "steps": sorted({picture.step for pictures in drawn for picture in pictures}),
        "tasks": [_task(run, task, detail) for task in run.tasks],
        "tables": summary.evaluation_table(run),
        "comparisons": {
            name: summary.comparison_tables(rows) for name, rows in run.comparisons.items()
        },
    }


def _task(run: RunData, task: str, detail: Detail) -> dict[str, Any]:
    """Returns what a page shows of one task of a run."""
    judged = []
    for name, scorer in run.judged(task):
        gained, lost = gallery.changes(run, name, scorer, detail)
        records = (run.evaluations[0], run.evaluations[-1])
        ends = {
            record.step: gallery.ends(record, name, scorer, detail)
            for record in records
            if scorer in record.scores.get(name, {})
        }
        judged.append(
            {
                "name": name,
                "scorer": scorer,
                "ends": list(ends.items()),
                "gained": gained,
                "lost": lost,
            }
        )
    return {
        "name": task,
        "judged": judged,
        "percentiles": curves.percentile_plots(run, task),
    }
