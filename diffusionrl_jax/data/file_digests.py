"""Digests of files and folders, which tell whether what is read is what was read earlier."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, cast

from etils import epath

from diffusionrl_jax.data.files import matching


def file_digest(path: str | os.PathLike) -> str:
    """Returns a file's SHA-256, as `sha256sum` prints it.

    Args:
      path: a file, on a disk or in a bucket. It is read once, a part at a time.
    """
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def files_digest(files: Mapping[str, str | os.PathLike]) -> str:
    """Returns one digest of several files.

    It is the SHA-256 of what `sha256sum` prints of them, a line each, in the order of the bytes of
    their names.

    Args:
      files: the path of each file, by the name that it is called by.
    """
    digest = hashlib.sha256()
    for name in sorted(files, key=os.fsencode):
        digest.update(f"{file_digest(files[name])}  ".encode() + os.fsencode(name) + b"\n")
    return digest.hexdigest()


def folder_digest(path: str | os.PathLike) -> str:
    """Returns the digest of a folder: that of its files, by their names in it.

    Args:
      path: a folder, whose files that begin with a dot, or lie in folders that do, are left out; or
        a file, which counts alone.
    """
    path = epath.Path(path)
    if not path.is_dir():
        return file_digest(path)
    return files_digest(dict(_files(path, "")))


def _files(folder: epath.Path, prefix: str) -> Iterator[tuple[str, epath.Path]]:
    for entry in matching(folder, "*"):
        name = f"{prefix}{entry.name}"
        if entry.is_dir():
            yield from _files(entry, f"{name}/")
        else:
            yield name, entry


def settings_digest(settings: Any) -> str:
    """Returns a short name of settings, 16 hexadecimal digits, whatever the order of their names.

    Args:
      settings: dictionaries, lists and plain values.
    """
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
