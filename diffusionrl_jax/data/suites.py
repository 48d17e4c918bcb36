"""Sets of prompts that are known by a name, with the categories that each prompt belongs to.

A config names one as `suite:NAME?option=value`. Small ones are shipped; the others are files whose
path is given, so that none is ever silently missing.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from diffusionrl_jax.data import object_requests, word_lists
from diffusionrl_jax.data.files import resolve
from diffusionrl_jax.data.prompt_files import read_columns, read_prompts, read_rows
from diffusionrl_jax.data.prompts import PORTRAIT, RELATIONS, PairPrompts, TemplatePrompts
from diffusionrl_jax.data.sources import Source, find_files
from diffusionrl_jax.mistakes import UserError, suggestion

KIND = "suite"
PLACES = ("on the left of", "on the right of", "on the top of", "on the bottom of")

# Prompt -> column -> category.
Categorised = dict[str, dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Suite:
    """A set of prompts.

    Attributes:
      read: takes a source of the kind `KIND`, and returns its prompts with their categories.
      options: the options that a source may have; "file" is one that it must have.
      shipped: the file that is shipped with this package, if there is one.
      note: what is to be said beside its numbers.
    """

    read: Callable[[Source], Categorised]
    options: tuple[str, ...] = ()
    shipped: str = ""
    note: str = ""


def _read_table(field: str, *columns: str) -> Callable[[Source], Categorised]:
    """Returns how a table is read by the columns that have prompts and categories."""

    def read(source: Source) -> Categorised:
        name = f"{source.options['file']}?field={source.options.get('field', field)}"
        return read_columns(name, columns)

    return read


def _read_styles(source: Source) -> Categorised:
    """Reads files that are each of one style, which is their name."""
    field = source.options.get("field", "prompt")
    return {
        prompt: {"style": path.stem}
        for path in find_files(source.options["file"])
        for prompt in read_rows(path, field)
    }


def _read_shipped(path: str, relations: tuple[str, ...] = ()) -> Callable[[Source], Categorised]:
    def read(source: Source) -> Categorised:
        del source
        prompts = read_prompts(str(resolve(path, KIND)))
        return {prompt: _by_relation(prompt, relations) for prompt in prompts}

    return read


def _by_relation(prompt: str, relations: tuple[str, ...]) -> dict[str, str]:
    """Returns the one of the relations that a prompt names, if there are any."""
    found = next((word for word in relations if f" {word} " in prompt), "")
    return {"relation": found} if found else {}


def _read_objects(source: Source) -> Categorised:
    del source
    pairs = PairPrompts(word_lists.objects("test"), RELATIONS, 0).prompts
    return {prompt: _by_relation(prompt, RELATIONS) for prompt in pairs}


def _read_occupations(source: Source) -> Categorised:
    del source
    return dict.fromkeys(TemplatePrompts(PORTRAIT, word_lists.occupations("all"), 0).prompts, {})


def _read_requests(source: Source) -> Categorised:
    each = source.number("each") if "each" in source.options else len(object_requests.NOUNS)
    made = object_requests.make_requests(each, source.number("seed"))
    return {prompt: {"task": task} for prompt, task in made.items()}


COLOUR, SPATIAL = (f"asset:prompts/t2i_compbench_{name}.txt" for name in ("colour", "spatial"))
SUITES: dict[str, Suite] = {
    # Yu et al., 2206.10789: PartiPrompts.tsv of github.com/google-research/parti.
    "parti_prompts": Suite(_read_table("Prompt", "Category", "Challenge"), ("file", "field")),
    # Saharia et al., 2205.11487, as a table with these columns.
    "drawbench": Suite(_read_table("Prompts", "Category"), ("file", "field")),
    # Wu et al., 2306.09341: a JSON file for each of four styles.
    "hpd_v2": Suite(_read_styles, ("file", "field")),
    # Huang et al., 2307.06350: the validation prompts.
    "t2i_compbench_colour": Suite(_read_shipped(COLOUR), shipped=COLOUR),
    "t2i_compbench_spatial": Suite(
        _read_shipped(SPATIAL, (*PLACES, "next to", "near", "on side of")), shipped=SPATIAL
    ),
    # The paper's, 2401.12244, Secs. 4.1 and 4.3.
    "held_out_objects": Suite(_read_objects),
    "occupations": Suite(_read_occupations),
    "object_requests": Suite(
        _read_requests,
        ("each", "seed"),
        note="GenEval's six tasks on prompts of our own: no numbers of GenEval.",
    ),
}


def find_suite(source: Source) -> Suite:
    """Returns the suite that a source names.

    Raises:
      UserError: there is none, an option is unknown, or the file is not given.
    """
    if source.name not in SUITES:
        raise UserError(f"There is no {source.text!r}: {suggestion(source.name, SUITES)}")
    suite = SUITES[source.name]
    source.check_options(suite.options)
    if "file" in suite.options and "file" not in source.options:
        raise UserError(
            f"{source.text!r} is not shipped: give its file, {KIND}:{source.name}?file=PATH; "
            "docs/evaluation.md says where it is from."
        )
    return suite


def read_suite(source: Source, columns: Sequence[str] | None = None) -> Categorised:
    """Returns the different prompts of a suite, in their order, each with its categories.

    Args:
      source: a source of the kind `KIND`.
      columns: the columns of categories that are wanted; None means all.

    Raises:
      UserError, OSError: as `find_suite`, it has no such column, or a file is missing or broken.
    """
    found = find_suite(source).read(source)
    if columns is None:
        return found
    known = columns_of(found)
    for column in columns:
        if column not in known:
            raise UserError(
                f"{source.text!r} has no column {column!r}, but {known}: name one of them, or none."
            )
    return {
        prompt: {column: of_prompt[column] for column in columns if column in of_prompt}
        for prompt, of_prompt in found.items()
    }


def suite_files(source: Source) -> list[epath.Path]:
    """Returns the files that a suite is read from, none if it is made up.

    Raises:
      UserError, OSError: as `find_suite`, or a file is missing.
    """
    suite = find_suite(source)
    path = suite.shipped or source.options.get("file", "")
    return find_files(str(resolve(path, KIND))) if path else []


def columns_of(categorised: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Returns the names of the columns of categories, in their order."""
    return list(dict.fromkeys(column for columns in categorised.values() for column in columns))
