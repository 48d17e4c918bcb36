"""Reads the prompts of files, row by row: text, JSON, tables.

Only for .json does the memory grow with the file. The end of a file's name says what it is. Every
row that is not a prompt is one error that names the file, the line or row, and the mend. Blank
prompts are skipped. Lines are counted from 1, and rows of parquet files and items of arrays from 0,
as their tools count them.
"""

import csv
import functools
import json
import pathlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from diffusionrl_jax.data.sources import decode_text, find_files, parse
from diffusionrl_jax.mistakes import UserError

ROWS_AT_ONCE = 16_384
BUFFER_BYTES = 2**20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
TEXTS = (".txt", ".text")
# It fits what looks like one of the endings by which tools know files. What follows the dot in
# other names is a part of the name.
ENDING = re.compile(r"\.[a-z][a-z0-9]{0,7}")
# The rows of a table, each after the number of a line of its.
Rows = Iterator[tuple[int, list[str]]]


def read_rows(path: epath.Path, field: str) -> Iterator[str]:
    """Reads the prompts of a file in its order, duplicates included, without spaces around them.

    Args:
      path: a file of one of the kinds of `TABLES`, or of UTF-8 text with one prompt a line; local
        or `gs://`.
      field: the name of the field of each JSON object, or of the column. It has no effect on text
        and on arrays of strings.

    Raises:
      UserError: a row is not a prompt, or the file is damaged, has no such column, or is of a kind
        that is not read.
    """
    reader = TABLES.get(path.suffix.lower())
    rows = read_lines(path) if reader is None else reader(path, field)
    return filter(None, (text.strip() for text in rows))


def read_lines(path: epath.Path) -> Iterator[str]:
    """Reads the lines of a UTF-8 text file, one after another.

    Args:
      path: a file whose name ends in one of `TEXTS`, or in nothing that says what it is.

    Raises:
      UserError: the file is not UTF-8, its lines end in carriage returns alone, or its name says
        that it is something else.
    """
    ending = path.suffix.lower()
    if ending not in TEXTS and ENDING.fullmatch(ending):
        raise UserError(
            f"{path} is not read: end the name in {', '.join(TEXTS)} if it is text, one a line, or"
            f" make it a file of {', '.join(TABLES)}."
        )
    return _text_lines(path)


def _text_lines(path: epath.Path) -> Iterator[str]:
    for place, text in _lines(path):
        if "\r" in text.rstrip("\r\n"):
            raise UserError(
                f"{place} has a carriage return (\\r) within: save it with \\n line ends."
            )
        yield text


def has_fields(name: str) -> bool:
    """Returns whether `field=` has an effect on the files of a name, which may have a *."""
    return pathlib.PurePath(name).suffix.lower() in TABLES


def read_prompts(name: str) -> tuple[str, ...]:
    """Returns all prompts of the files of a name, in their order, duplicates included.

    Args:
      name: a path, as a task names it. For a file of one of the kinds of `TABLES`, `?field=caption`
        may follow.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: there is no prompt, or as `read_rows`.
    """
    source = parse(name, ())
    source.check_options(("field",) if has_fields(source.name) else ())
    field = source.options.get("field", "prompt")
    prompts = tuple(text for path in find_files(source.name) for text in read_rows(path, field))
    if not prompts:
        raise UserError(f"{name} has no prompt: write some.")
    return prompts


def read_columns(name: str, columns: Sequence[str]) -> dict[str, dict[str, str]]:
    """Returns what other columns, or JSON fields, say of each prompt of a file.

    Args:
      name: a path, as a task names it, of a file with fields.
      columns: the names of the other columns, at least one.

    Returns:
      Prompt -> column -> what it says, in the order of the rows. Where a prompt is there twice, the
      first counts.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it has no such column, no columns at all or no prompt, or as `read_rows`.
    """
    source = parse(name, ())
    field, found = source.options.get("field", "prompt"), {}
    for path in find_files(source.name):
        reader = TABLES.get(path.suffix.lower())
        if reader is None:
            raise UserError(
                f"{path} has no column {columns[0]!r}, since it is text: name a table, of"
                f" {', '.join(TABLES)}."
            )
        rows = (reader(path, column) for column in (field, *columns))
        for prompt, *values in zip(*rows, strict=True):
            said = dict(zip(columns, map(str.strip, values), strict=True))
            if prompt := prompt.strip():
                found.setdefault(prompt, said)
    if not found:
        raise UserError(f"{name} has no prompt: write some.")
    return found


def _lines(path: epath.Path) -> Iterator[tuple[str, str]]:
    """Yields each line of a UTF-8 text file after its place, which messages begin with."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}, line {number}"
            yield (
                place,
                decode_text(line.removeprefix(BYTE_ORDER_MARK if number == 1 else b""), place),
            )


def _json_lines(path: epath.Path, field: str) -> Iterator[str]:
    for place, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{place} is not JSON ({error}): write one object a line.") from None
        except RecursionError:
            raise UserError(
                f"{place} is JSON nested too deeply: write one object a line."
            ) from None
        yield _json_text(_json_field(row, field, place), f"the field {field!r}", place)


def _json_array(path: epath.Path, field: str) -> Iterator[str]:
    """Yields the prompts of a JSON array, which is held in memory as a whole."""
    text = decode_text(path.read_bytes().removeprefix(BYTE_ORDER_MARK), str(path))
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}): mend it, or name it .jsonl if it has one object a line."
        ) from None
    except RecursionError:
        raise UserError(f"{path} is JSON nested too deeply: write an array of prompts.") from None
    if not isinstance(rows, list):
        raise UserError(
            f'{path} is not a JSON array: write ["...", "..."] or [{{"{field}": "..."}}].'
        )
    for index, row in enumerate(rows):
        place = f"{path}, item {index} (the first is 0)"
        if isinstance(row, dict):
            yield _json_text(_json_field(row, field, place), f"the field {field!r}", place)
        else:
            yield _json_text(row, "it", place)


def _json_field(row: Any, field: str, place: str) -> Any:
    if not isinstance(row, dict):
        raise UserError(f'{place} is not a JSON object: write {{"{field}": "..."}}.')
    if field not in row:
        raise UserError(
            f"{place} has no field {field!r}, but {sorted(row)}: mend the line, or name the"
            " field, as in ?field=caption."
        )
    return row[field]


def _json_text(text: Any, what: str, place: str) -> str:
    """Returns a text, and refuses what is not a whole one."""
    if not isinstance(text, str):
        raise UserError(f"{place}: {what} is {type(text).__name__}, not a string: mend the line.")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can name one half of a pair of UTF-16's.
        half = ascii(text[error.start])[1:-1]
        raise UserError(
            f"{place}: {what} has half of a character, {half}: mend the line."
        ) from None
    return text


def _column(path: epath.Path, field: str, read: Callable[[epath.Path], Rows]) -> Iterator[str]:
    """Yields a column of a table whose first row names the columns.

    Args:
      path: the table.
      field: the column's name.
      read: reads the table's rows.
    """
    rows = read(path)
    _, names = next(rows, (1, []))
    _check_name(path, names, field)
    column = names.index(field)
    for line, row in rows:
        if row and len(row) != len(names):
            raise UserError(
                f"{path}, line {line} is of {len(row)}, but the first row of"
                f" {len(names)} fields: mend the line."
            )
        if row:
            yield row[column]


def _comma_rows(path: epath.Path) -> Rows:
    """Yields each row of a table with commas after the number of its last line.

    Fields may be in double quotes, and then run over several lines (RFC 4180).
    """
    rows = csv.reader((text for _, text in _lines(path)), strict=True)
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: {error}: mend the quotes.") from None


def _tab_rows(path: epath.Path) -> Rows:
    """Yields each row of a table with tabs after the number of its line.

    Fields may be in double quotes. Most tables with tabs know none, PartiPrompts' among them: a
    line whose quotes do not enclose a field is taken as it stands, and no field runs over its end,
    so that a quote alone does not take in the rows that follow.
    """
    for number, (_, text) in enumerate(_lines(path), start=1):
        try:
            yield number, next(csv.reader([text], delimiter="\t", strict=True))
        except csv.Error:
            yield number, text.rstrip("\r\n").split("\t")


def _parquet(path: epath.Path, field: str) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            # It is buffered, so that a row group of any size is decoded a page at a time.
            table = pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
            _check_column(path, table.schema_arrow, field)
            first = 0
            for batch in table.iter_batches(ROWS_AT_ONCE, columns=[field], use_threads=False):
                yield from _texts(path, batch.column(0), first)
                first += len(batch)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        message = str(error).splitlines()[0]
        raise UserError(f"{path} is not a whole parquet file ({message}): copy it anew.") from None


def _check_name(path: epath.Path, names: Collection[str], field: str) -> None:
    count = list(names).count(field)
    if not count:
        raise UserError(
            f"{path} has no column {field!r}, but {list(names)}: name one of them, as in"
            f" ?field={next(iter(names), 'caption')}."
        )
    if count > 1:
        raise UserError(f"{path} has {count} columns {field!r}: rename all but one.")


def _check_column(path: epath.Path, schema: pa.Schema, field: str) -> None:
    _check_name(path, schema.names, field)
    kind = schema.field(field).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not any(is_text(kind) for is_text in texts):
        raise UserError(f"{path}: the column {field!r} is {kind}, not strings: name another.")


def _texts(path: epath.Path, column: pa.Array, first: int) -> Iterator[str]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    # Texts are read as bytes, since Arrow takes parquet's word for it that they are UTF-8.
    for row, text in enumerate(column.cast(pa.large_binary()).to_pylist(), start=first):
        if text is None:
            raise UserError(f"{path}, row {row} (the first is 0) is null: leave the row out.")
        try:
            yield text.decode("utf-8")
        except UnicodeDecodeError:
            yield decode_text(text, f"{path}, row {row} (the first is 0)")


TABLES = {
    ".jsonl": _json_lines,
    ".json": _json_array,
    ".csv": functools.partial(_column, read=_comma_rows),
    ".tsv": functools.partial(_column, read=_tab_rows),
    ".parquet": _parquet,
}
