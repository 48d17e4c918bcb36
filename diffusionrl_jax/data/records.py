"""Reads array_record files: tensorflow-datasets' own, or any that hold tf.train.Example.

They are read by random access, a feature at a time, and without TensorFlow.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import tensorflow_datasets as tfds
from array_record.python import array_record_data_source
from etils import epath
from tensorflow_datasets.core.read_only_builder import builder_from_files

from diffusionrl_jax.data.files import as_path, in_bucket, is_utf8, matching
from diffusionrl_jax.data.sources import Source
from diffusionrl_jax.mistakes import UserError

KINDS = ("tfds", "array_record")
END_BYTES = 2**20
# An array_record file is a Riegeli file: whole blocks, of which the first begins with a signature
# and the last has a protobuf: where the footer begins, a varint of seven bits a byte, and a number.
BLOCK_BYTES = 2**16
SIGNATURE = bytes.fromhex("83af70d10d884a3f") + bytes(8) + b"\x40"
FOOTER = re.compile(
    rb"\x08([\x80-\xff]{0,9}[\x00-\x7f])\x10\xde\xc0\xeb\xfe\x84\xce\xc3\xc9\x71", re.DOTALL
)
# The reader takes this from the end of a file's name, for a range of records.
RANGE = re.compile(r"\[\d+:\d+\]$")
_FINDING = threading.Lock()
OPTIONS = {"tfds": ("tfds_split", "data_dir"), "array_record": ()}


class Records(Sequence):
    """Some features of every record, as bytes.

    Args:
      source: the source's name, for messages.
      paths: array_record files, local, in order.
      features: the names of bytes features: texts, or pictures as files.
      fingerprint: tells these records from others, alike on every machine.

    Raises:
      UserError: the files are damaged or hold no record.
    """

    def __init__(
        self, source: str, paths: Sequence[str], features: Sequence[str], fingerprint: str
    ):
        self.source, self.fingerprint, self._paths = source, fingerprint, tuple(paths)
        self._features = tuple(features)
        # Pictures stay files here, since a text feature is bytes as they are.
        self._parser = tfds.features.FeaturesDict(
            {name: tfds.features.Text() for name in self._features}
        )
        try:
            self._records = array_record_data_source.ArrayRecordDataSource(list(paths))
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"{source}: the array_record files are damaged ({error}): copy them anew."
            ) from None
        if not len(self._records):
            raise UserError(f"{source} holds no record: name one that does.")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, bytes]:
        with self._reading([index]):
            record = self._records[index]
        return self._parse(index, record)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, bytes]]:
        """Returns several records, read in parallel.

        Raises:
          UserError: a file or a record is damaged.
        """
        with self._reading(indices):
            records = self._records.__getitems__(list(indices))
        return [self._parse(*pair) for pair in zip(indices, records, strict=True)]

    @contextlib.contextmanager
    def _reading(self, indices: Sequence[int]) -> Iterator[None]:
        """Turns what the reader raises into an error that names the files."""
        try:
            yield
        except (ValueError, RuntimeError) as error:
            files = sorted({self._file_of(index) for index in indices})
            raise UserError(
                f"{self.source}: the array_record files are damaged ({error}), of {files}: copy"
                " them anew."
            ) from None

    def _file_of(self, index: int) -> str:
        """Returns the file that holds a record."""
        for path in self._paths:
            index -= len(array_record_data_source.ArrayRecordDataSource([path]))
            if index < 0:
                return path
        raise IndexError(index)

    def _parse(self, index: int, record: bytes) -> dict[str, bytes]:
        """Returns the features of a record's bytes."""
        try:
            found = cast(dict[str, Any], self._parser.deserialize_example_np(record))
        except Exception as error:  # The parser raises whatever the broken record makes it.
            raise UserError(
                f"{self.source}, record {index} (the first is 0): cannot read the features"
                f" {list(self._features)} ({error}): it must be a tf.train.Example with these as"
                " bytes."
            ) from None
        for name, value in found.items():
            if not isinstance(value, bytes):
                raise UserError(
                    f"{self.source}, record {index} (the first is 0): the feature {name!r} is"
                    f" {type(value).__name__}, not one text or picture: name another."
                )
        return found


def open_records(source: Source, features: Mapping[str, str]) -> Records:
    """Opens `tfds:NAME` or `array_record:FOLDER`.

    Args:
      source: for tfds, the name of a prepared dataset (`data_dir` says where it lies, `tfds_split`
        which of its splits is meant) or the folder with its features.json; for array_record, a
        folder, whose array_record files are all read.
      features: for each option that names a feature, the feature's name.

    Raises:
      FileNotFoundError: there is no such dataset, split or folder.
      UserError: a feature is not there or of a foreign type, or the dataset is broken, has another
        file format, or is in a bucket.
    """
    for folder in (source.name, source.options.get("data_dir", "")):
        _refuse_bucket(source, folder)
    if source.kind == "array_record":
        folder = as_path(source.name, "array_record:")
        paths = matching(folder, "*array_record*")
        if not paths:
            raise FileNotFoundError(
                f"{source.text!r}: the folder {folder} has no array_record files: mend the path."
            )
        description = ""
    else:
        builder = open_builder(source)
        _refuse_bucket(source, builder.data_dir)
        split = source.options.get("tfds_split", "train")
        if split not in builder.info.splits:
            raise FileNotFoundError(
                f"{source.text!r} has no split {split!r}: set tfds_split to one of"
                f" {sorted(builder.info.splits)}."
            )
        known = cast(Mapping[str, Any], builder.info.features)
        for option, name in features.items():
            if name not in known:
                raise UserError(
                    f"{source.text!r} has no feature {name!r}: set {option} to one of"
                    f" {sorted(known)}."
                )
        stored = builder.info.file_format
        if stored is not tfds.core.FileFormat.ARRAY_RECORD:
            raise UserError(
                f"{source.text!r} is stored as {stored and stored.value}: prepare it with"
                ' file_format="array_record".'
            )
        paths = [epath.Path(path) for path in builder.info.splits[split].filepaths]
        description = (epath.Path(builder.data_dir) / "dataset_info.json").read_text()
    for path in paths:
        _refuse_name(source, path)
        _refuse_part(source, path)
    files = [(path.name, path.stat().length, _ends(path)) for path in paths]
    return Records(
        source.text,
        [str(path) for path in paths],
        tuple(features.values()),
        json.dumps([description, files, sorted(features.values())]),
    )


def _refuse_bucket(source: Source, folder: str | epath.Path) -> None:
    """Refuses a bucket: the reader of array_record files knows none, and would not return."""
    if in_bucket(folder):
        raise UserError(
            f"{source.text!r}: array_record files must be on a file system: copy those of {folder}"
            " to one, or mount the bucket."
        )


def _refuse_name(source: Source, path: epath.Path) -> None:
    """Refuses a name that the reader can't open, or takes for a part of another file."""
    if not is_utf8(path):
        raise UserError(
            f"{source.text!r}: array_record files are read by names in UTF-8 only, unlike"
            f" {os.fsencode(path)!r}: rename it, or make a link of such a name to it."
        )
    if RANGE.search(path.name):
        raise UserError(
            f"{source.text!r}: the end of the name {path} would be read as a range of records:"
            " rename it."
        )


def _refuse_part(source: Source, path: epath.Path) -> None:
    """Refuses a file that lacks its beginning, its end or blocks between.

    The reader of array_record files would look for the footer where it is not, and then reserve as
    much memory as it finds in bytes that are something else: it may crash.
    """
    size = path.stat().length
    with path.open("rb") as file:
        begin = file.read(len(SIGNATURE))
        file.seek(max(0, size - BLOCK_BYTES))
        end = file.read()
    found = FOOTER.search(end)
    digits = enumerate(found[1] if found else b"")
    footer = sum((digit & 0x7F) << 7 * place for place, digit in digits)
    if begin != SIGNATURE or size % BLOCK_BYTES or not 0 < footer < size - BLOCK_BYTES:
        raise UserError(
            f"{source.text}: the array_record files are damaged ({path} lacks a part, or is"
            " something else): copy them anew."
        )


def _ends(path: epath.Path) -> str:
    """Returns a hash of a file's first and last bytes; hashing all of it would take too long."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(END_BYTES))
        file.seek(max(0, path.stat().length - END_BYTES))
        digest.update(file.read(END_BYTES))
    return digest.hexdigest()


def open_builder(source: Source):
    """Opens a prepared dataset by its files alone: none of its own code is run.

    Args:
      source: as in `open_records`, of the kind tfds.

    Raises:
      FileNotFoundError: there is no such dataset.
      UserError: it is broken, or has a feature of a foreign type.
    """
    folder = as_path(source.name, "tfds:")
    data_dir = source.options.get("data_dir")
    if data_dir is not None:
        data_dir = as_path(data_dir, "data_dir")
        if "[" in os.fspath(data_dir):
            raise UserError(
                f"{source.text!r}: tensorflow-datasets finds nothing in a data_dir with a [: name"
                f" the dataset's folder with its features.json, below {data_dir}, instead."
            )
    try:
        with _own_features_only():
            if (folder / "features.json").exists():
                return tfds.builder_from_directory(folder)
            # tfds.builder would run the dataset's code, for some names fetched from the network.
            return builder_from_files(source.name, data_dir=data_dir)
    except _ForeignFeatureError as error:
        raise UserError(
            f"{source.text!r}: a feature's type is {error}, which is not tensorflow-datasets' own;"
            " it would have to be imported, and no code is run for data: prepare it with features"
            " of tfds.features."
        ) from None
    except (tfds.core.DatasetNotFoundError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"{source.text!r}: tensorflow-datasets finds no {source.name!r} that is prepared"
            f" ({_first_line(error)}): name its data_dir, or the folder with its features.json;"
            f' or prepare it once with tfds.builder("{source.name}",'
            ' file_format="array_record").download_and_prepare().'
        ) from None
    except Exception as error:  # The parsers raise whatever the broken file makes them.
        raise UserError(
            f"{source.text!r}: tensorflow-datasets cannot open it ({_first_line(error)}): mend the"
            " name, or copy its features.json and dataset_info.json anew."
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class _ForeignFeatureError(Exception):
    """The error of a type of feature whose code does not lie in tensorflow-datasets."""


@contextlib.contextmanager
def _own_features_only() -> Iterator[None]:
    """Has tensorflow-datasets refuse types of features that it would import by their name.

    Raises:
      _ForeignFeatureError: there is such a type, at whatever depth.
    """
    connector = tfds.features.FeatureConnector
    own = f"{tfds.features.__name__}."

    def find(python_class_name: str) -> type[tfds.features.FeatureConnector]:
        module, _, _ = python_class_name.rpartition(".")
        if not (module.startswith(own) and module in sys.modules):
            raise _ForeignFeatureError(repr(python_class_name))
        return original.__get__(None, connector)(python_class_name)

    with _FINDING:
        original = vars(connector)["cls_from_name"]
        connector.cls_from_name = staticmethod(find)
        try:
            yield
        finally:
            connector.cls_from_name = original
