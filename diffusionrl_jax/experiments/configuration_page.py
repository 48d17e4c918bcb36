"""Writes docs/configuration.md from the table of fields.

python -m diffusionrl_jax.experiments.configuration_page > docs/configuration.md
"""

from collections.abc import Iterable, Mapping
from typing import Any

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.experiments import fields
from diffusionrl_jax.experiments.config import get_config
from diffusionrl_jax.experiments.ranges import Kind
from diffusionrl_jax.experiments.tasks import make_evaluation_set, make_scorer, make_task
from diffusionrl_jax.monitoring.markdown import table

NAME = "NAME"
HEAD = """# What fields and flags may hold

Made from the table in `diffusionrl_jax/experiments/fields.py`, from which the checks come, too, by
`python -m diffusionrl_jax.experiments.configuration_page > docs/configuration.md`.

Anything else is refused in one line before anything is computed: what lies outside, NaN, the
infinities, a field that is not here. What each field is for stands beside its default in
`diffusionrl_jax/experiments/config.py`. Bounds lie far beyond what anybody trains with; a value
within them is no advice.
"""


def markdown() -> str:
    """Returns the page's text."""
    defaults = _defaults(get_config())
    parts = [
        HEAD,
        "## Fields of a config\n",
        table(
            ("field", "default", "may be", "0"),
            (
                (
                    f"`config.{name.replace(fields.ANY, NAME)}`",
                    defaults.get(name, ""),
                    *_cells(kind),
                )
                for name, kind in fields.FIELDS.items()
            ),
        ),
        f"\nA name that is your own is {NAME}. A scorer has these fields beside its options:\n",
        table(
            ("field", "may be", "0"),
            ((f"`{name}`", *_cells(kind)) for name, kind in fields.SCORER_FIELDS.items()),
        ),
        "\n## Options of scorers\n",
        table(
            ("reward", "option", "may be", "0"),
            (
                (f"`{reward}`", f"`{name}`", *_cells(kind))
                for reward, options in fields.OPTIONS.items()
                for name, kind in options.items()
            ),
        ),
        "\n## Numbers of flags\n",
        table(
            ("program", "flag", "may be", "0"),
            (
                (f"`{program}`", f"`--{name}`", *_cells(kind))
                for program, flags in fields.FLAGS.items()
                for name, kind in flags.items()
            ),
        ),
    ]
    return "\n".join(parts)


def _defaults(config: Config) -> dict[str, str]:
    """Returns each field's default, by the names of `fields.FIELDS`."""
    config.tasks[fields.ANY] = make_task(make_scorer(""), "")
    config.evaluation.sets[fields.ANY] = make_evaluation_set("", 0, ())
    needed = ("scorer", "prompts", "images", "scorers")
    return {
        name: f"`{value!r}`"
        for name, value in _leaves(config)
        if not (fields.ANY in name and name.rpartition(".")[2] in needed)
    }


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yields the full name and the value of each field of a group."""
    for name, value in config.items():
        if f"{prefix}{name}" not in fields.FIELDS and hasattr(value, "items"):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _cells(kind: Kind) -> tuple[str, str]:
    """Returns what a field may be, and what 0 means."""
    return str(kind), getattr(kind, "zero", "")


if __name__ == "__main__":
    print(markdown(), end="")
