"""Prompts of files, row by row and in bounded memory: text, JSON lines, parquet.

Every row that is not a prompt is one error that names the file, the line or row, and the mend;
blank prompts are skipped. Lines are counted from 1, rows of tables from 0, as their tools do.
"""

import json
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from diffusionrl_jax.data.sources import decode_text, find_files
from diffusionrl_jax.mistakes import UserError

ROWS_AT_ONCE = 16_384
BUFFER_BYTES = 2**20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_rows(path: epath.Path, field: str) -> Iterator[str]:
    """The prompts of a file in its order, duplicates included, without spaces around them.

    Args:
      path: of a .jsonl or .parquet file, or else of a UTF-8 text file with one prompt a line;
        local or `gs://`.
      field: of each JSON object, or the column; of no account for text.

    Raises:
      UserError: a row is not a prompt, or the file is damaged or has no such column.
    """
    reader = TABLES.get(path.suffix.lower())
    rows = (text for _, text in _lines(path)) if reader is None else reader(path, field)
    return filter(None, (text.strip() for text in rows))


def read_prompts(path: str) -> tuple[str, ...]:
    """All prompts of a UTF-8 text file in the file's order, duplicates included.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: the file has no prompt, or is not UTF-8.
    """
    lines = (text.strip() for file in find_files(path) for _, text in _lines(file))
    prompts = tuple(filter(None, lines))
    if not prompts:
        raise UserError(f"{path} has no prompt: write one a line, in UTF-8.")
    return prompts


def _lines(path: epath.Path) -> Iterator[tuple[str, str]]:
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
        if not isinstance(row, dict):
            raise UserError(f'{place} is not a JSON object: write {{"{field}": "..."}}.')
        if field not in row:
            raise UserError(
                f"{place} has no field {field!r}, but {sorted(row)}: mend the line, or name the"
                " field, as in ?field=caption."
            )
        if not isinstance(row[field], str):
            raise UserError(
                f"{place}: the field {field!r} is {type(row[field]).__name__}, not a string: mend"
                " the line."
            )
        try:
            row[field].encode()
        except UnicodeEncodeError as error:  # JSON can name halves of UTF-16's pairs alone.
            half = ascii(row[field][error.start])[1:-1]
            raise UserError(
                f"{place}: the field {field!r} has half of a character, {half}: mend the line."
            ) from None
        yield row[field]


def _parquet(path: epath.Path, field: str) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            # Buffered, so that a row group of any size is decoded a page at a time.
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


def _check_column(path: epath.Path, schema: pa.Schema, field: str) -> None:
    if field not in schema.names:
        raise UserError(
            f"{path} has no column {field!r}, but {schema.names}: name one of them, as in"
            f" ?field={schema.names[0] if schema.names else 'caption'}."
        )
    kind = schema.field(field).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not any(is_text(kind) for is_text in texts):
        raise UserError(f"{path}: the column {field!r} is {kind}, not strings: name another.")


def _texts(path: epath.Path, column: pa.Array, first: int) -> Iterator[str]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    # As bytes, since Arrow takes parquet's word for it that strings are UTF-8.
    for row, text in enumerate(column.cast(pa.large_binary()).to_pylist(), start=first):
        if text is None:
            raise UserError(f"{path}, row {row} (the first is 0) is null: leave the row out.")
        try:
            yield text.decode("utf-8")
        except UnicodeDecodeError:
            yield decode_text(text, f"{path}, row {row} (the first is 0)")


TABLES = {".jsonl": _json_lines, ".parquet": _parquet}
