"""Opens the endless stream of prompts that a config names."""

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence

from etils import epath

from diffusionrl_jax.data import hub_files, prompt_index, records, suites, word_lists
from diffusionrl_jax.data.emoji import prompt_sets
from diffusionrl_jax.data.file_digests import file_digest
from diffusionrl_jax.data.files import resolve
from diffusionrl_jax.data.prompt_files import has_fields, read_columns, read_rows
from diffusionrl_jax.data.prompts import PromptSource, ShuffledPrompts, TemplatePrompts
from diffusionrl_jax.data.sources import Source, decode_text, find_files, parse
from diffusionrl_jax.mistakes import UserError

EMOJI = "emoji:"
HUB = "hub"
KINDS = (HUB, suites.KIND, *records.KINDS, *word_lists.PROMPT_SETS, "template")
SPLITTING = ("split", "held_out")
RECORDS_AT_ONCE = 1024
# It is to be raised when files are read in another way, so that older indices are not taken.
READ_AS = 3


def make_prompts(name: str, seed: int) -> PromptSource:
    """Opens the prompts that a config names: `emoji:pairs` and the like, or as `open_prompts` does.

    Args:
      name: the prompts' name in the config.
      seed: the seed of their order.

    Raises:
      UserError, OSError: there are no such prompts, or one is broken.
    """
    if not name.startswith(EMOJI):
        return open_prompts(name, seed)
    chosen = name.removeprefix(EMOJI)
    if chosen not in prompt_sets.PROMPT_SETS:
        known = [EMOJI + known for known in prompt_sets.PROMPT_SETS]
        raise UserError(f"There are no prompts {name!r}: use one of {known}, or a file.")
    return prompt_sets.PROMPT_SETS[chosen](seed)


def open_prompts(name: str, seed: int) -> PromptSource:
    """Opens a prompt source.

    Args:
      name: one of
        - a path, local or `gs://`, with * for several files: .jsonl, .json, .csv, .tsv, .parquet,
          or UTF-8 text with one prompt a line. `field=` names the JSON field or column ("prompt");
        - `hub:OWNER/NAME/FILE`: such a file of a dataset on the Hugging Face hub, brought into the
          hub's usual cache where it is not here;
        - `tfds:NAME` or `array_record:FOLDER`, as in `records.open_records`; `field=` is a feature;
        - `template:a portrait of {article} {noun}`, filled from a list `words=FILE`;
        - `objects:train`, `objects:test`: the paper's pairs of 450 and of 82 objects;
        - `occupations:all`, `occupations:train`, `occupations:test`: portraits at work;
        - `suite:NAME`: a set of prompts that `suites.SUITES` has, with its options.
        All but the last three lines take `held_out=2000` and `split=train` or `split=test`.
      seed: the seed of the prompts' order.

    Raises:
      UserError, OSError: there is no such source, or a row of it is not a prompt.
    """
    source = parse(name, KINDS)
    if source.kind in word_lists.PROMPT_SETS:
        source.check_options(())
        if source.name not in ("all", *prompt_index.SPLITS):
            raise UserError(
                f"There are no prompts {name!r}: use {source.kind}:train, {source.kind}:test or"
                f" {source.kind}:all."
            )
        return word_lists.PROMPT_SETS[source.kind](source.name, seed)
    if source.kind == suites.KIND:
        return ShuffledPrompts(tuple(suites.read_suite(source)), seed)
    if source.kind == "template":
        source.check_options(("words", *SPLITTING))
        if "words" not in source.options:
            raise UserError(f"{name!r} has no words: add ?words=FILE, one a line.")
        count, split = source.number("held_out"), source.options.get("split", "train")
        words = word_lists.read_words(source.options["words"], count, split)
        return TemplatePrompts(source.name, words, seed)
    if source.kind == HUB:
        (held,) = hub_files.fetch([describe_hub_file(source)])
        source = dataclasses.replace(source, kind="", name=str(held.folder / held.files[0]))
    return ShuffledPrompts(_indexed(source), seed)


def prompt_files(name: str) -> list[epath.Path]:
    """Returns the files that prompts are read from, in the order of their names.

    Args:
      name: the prompts' name in a config.

    Returns:
      The files; of a template its list of words. There are none for prompts that this package makes
      up, and for data sets of records, which have a format of their own.

    Raises:
      UserError, OSError: as `open_prompts`.
    """
    source = parse(name, (EMOJI.removesuffix(":"), *KINDS))
    if source.kind == HUB:
        (held,) = hub_files.fetch([describe_hub_file(source)])
        return [epath.Path(held.folder / held.files[0])]
    if source.kind == suites.KIND:
        return suites.suite_files(source)
    if source.kind == "template" and "words" in source.options:
        return find_files(str(resolve(source.options["words"], "words")))
    return [] if source.kind else find_files(source.name)


def prompt_categories(name: str, columns: Sequence[str] | None = None) -> suites.Categorised:
    """Returns the categories of the prompts that a config names.

    Args:
      name: the prompts' name in a config.
      columns: the columns of a suite, or of a file with fields, whose categories are told; None
        means all of a suite, and none of any other prompts.

    Raises:
      UserError: there is no such column.
      UserError, OSError: as `open_prompts`.
    """
    source = parse(name, (EMOJI.removesuffix(":"), *KINDS))
    if source.kind == suites.KIND:
        return suites.read_suite(source, columns)
    if not columns:
        return {}
    if source.kind:
        raise UserError(
            f"{name} has no columns {', '.join(columns)}: name none, or the prompts of a table or"
            " of a suite."
        )
    return read_columns(name, columns)


def prompt_note(name: str) -> str:
    """Returns what is to be said beside the numbers of a suite, "" of other prompts.

    The argument and the errors are those of `open_prompts`.
    """
    source = parse(name, (suites.KIND,))
    return suites.find_suite(source).note if source.kind else ""


def describe_hub_file(source: Source) -> hub_files.Need:
    """Describes what is needed from the hub for a source of the kind `HUB`.

    Raises:
      UserError: the source's name is not OWNER/NAME/FILE.
    """
    match = re.fullmatch(rf"({hub_files.HUB_ID})/([^*]+)", source.name)
    if match is None:
        raise UserError(
            f"{source.text!r} is not {HUB}:OWNER/NAME/FILE, as in "
            f"{HUB}:poloclub/diffusiondb/metadata.parquet: name one file of a dataset."
        )
    return hub_files.fixed_files(match[1], match[2], kind="dataset")


def _indexed(source: Source) -> prompt_index.Chosen:
    """Opens the index of a source's prompts, and chooses those of its split."""
    fields = ("field",) if source.kind or has_fields(source.name) else ()
    source.check_options((*fields, *SPLITTING, *records.OPTIONS.get(source.kind, ())))
    field = source.options.get("field", "prompt")
    count, split = source.number("held_out"), source.options.get("split", "train")
    digest = hashlib.sha256(repr((READ_AS, source.kind, field)).encode())
    if source.kind:
        opened = records.open_records(source, {"field": field})
        digest.update(opened.fingerprint.encode())
        rows = lambda: _record_texts(opened, field)
    else:
        files = find_files(source.name)
        for path in files:
            hashed = bytes.fromhex(file_digest(path))
            digest.update(json.dumps(path.suffix.lower()).encode() + hashed)
        rows = lambda: itertools.chain.from_iterable(read_rows(path, field) for path in files)
    index = prompt_index.open_index(source.text, digest.hexdigest()[:32], rows)
    if not len(index):
        raise UserError(f"{source.text} has no prompt: write some, or name another.")
    return prompt_index.Chosen(
        index, prompt_index.held_out(index.hashes, count, split, source.text)
    )


def _record_texts(opened: records.Records, field: str) -> Iterator[str]:
    """Yields the texts of all records that are not blank."""
    for first in range(0, len(opened), RECORDS_AT_ONCE):
        chunk = range(first, min(first + RECORDS_AT_ONCE, len(opened)))
        for index, record in zip(chunk, opened.__getitems__(chunk), strict=True):
            place = f"{opened.source}, record {index} (the first is 0)"
            if text := decode_text(record[field], place).strip():
                yield text
