"""Opens the files and folders that a user names, and writes files that are whole or not there.

They lie on disks and in buckets. Everything that a flag, a config's field or a variable names
passes through `as_path` or `resolve`, so that the same things are understood, and refused,
everywhere.
"""

import contextlib
import errno
import fnmatch
import json
import os
import re
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath
from fsspec.config import conf

from diffusionrl_jax import assets
from diffusionrl_jax.mistakes import UserError

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)/*(.*)", re.DOTALL)
# The schemes that epath knows, with the packages that open them.
BUCKETS = {"gs://": "gcsfs", "s3://": "s3fs", "az://": "adlfs", "hf://": "huggingface_hub"}
PARTIAL = ".partial"
# The names that `partial_path` makes, or once made.
LEFT = re.compile(r"(.+\.)?[0-9a-f]+\.partial")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SHOWN_CHARACTERS = 80
# Buckets' file systems remember what a folder holds, gcsfs for ever, and so would not see what
# another process writes there later. Those that are made from now on, by fsspec for epath, ask
# anew, unless fsspec's own configuration says otherwise. The names are those of their classes.
for protocol in ("gs", "gcs", "s3", "s3a", "az", "abfs"):
    conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)


def in_bucket(path: str | os.PathLike) -> bool:
    """Returns whether a path is not on a disk, but `gs://` or the like."""
    return "://" in os.fspath(path)


def is_utf8(path: str | os.PathLike) -> bool:
    """Returns whether a path's bytes are UTF-8, without which some libraries can't open it."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def as_path(text: str | os.PathLike, name: str) -> epath.Path:
    """Returns the path that a user has typed, with `~` and `~user` expanded.

    Args:
      text: any path of a file system, of whatever characters, or `gs://...`.
      name: what named the path, such as "--output" or "config.model", for messages.

    Returns:
      An absolute path, or one in a bucket. It need not exist.

    Raises:
      UserError: nothing can be there: the path is empty or too long, has a NUL character, or names
        an unknown user or an unknown scheme, or a bucket whose package is not installed.
    """
    text = os.fspath(text)
    if not text:
        raise UserError(f"{name} is empty: name a file or a folder.")
    shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
    if "\0" in text:
        raise UserError(f"{name}={shown!r} has a NUL character, as no path can: leave it out.")
    if scheme := SCHEME.match(text):
        # The message leaves out what may be a password.
        return _bucket_path(text, scheme[1], scheme[2], f"{name}={re.sub('//[^/]*@', '//', shown)}")
    if text.startswith("~"):
        expanded = os.path.expanduser(text)
        if expanded.startswith("~"):
            user = text.partition("/")[0].removeprefix("~")
            problem = f"there is no user {user!r}" if user else "this user has no home folder"
            raise UserError(
                f"{name}={shown}: {problem}; write ./{shown} for a folder of that name."
            )
        text = expanded
    if not text.startswith("/"):
        text = f"{os.getcwd()}/{text}"
    path = epath.Path(re.sub("/+", "/", text))
    longest_name, longest_path = (os.pathconf("/", f"PC_{kind}_MAX") for kind in ("NAME", "PATH"))
    lengths = [len(os.fsencode(part)) for part in path.parts]
    # A path's bytes end in a NUL, which counts.
    if max(lengths) > longest_name or len(os.fsencode(path)) >= longest_path:
        raise UserError(
            f"{name}={shown} is too long: a name may have {longest_name} bytes, and a path "
            f"{longest_path - 1}."
        )
    return path


def _bucket_path(text: str, scheme: str, rest: str, shown: str) -> epath.Path:
    if scheme == "file://":
        raise UserError(f"{shown}: write the path alone, without file://.")
    if scheme not in BUCKETS:
        raise UserError(
            f"{shown}: {scheme} is not known; give a path here, or one of {', '.join(BUCKETS)}."
        )
    if not rest:
        raise UserError(f"{shown} names no bucket: write {scheme}BUCKET/PATH.")
    path = epath.Path(text)
    try:
        path.exists()
    except ImportError as error:
        raise UserError(
            f"{shown} cannot be opened ({error}): for {scheme} run `pip install {BUCKETS[scheme]}`."
        ) from None
    except Exception:  # There are many kinds. Whoever uses the path says what is wrong.
        pass
    return path


def resolve(text: str | os.PathLike, name: str) -> epath.Path:
    """Returns the path that a user has typed, as `as_path`, or for `asset:...` the shipped one.

    Args:
      text, name: as in `as_path`.

    Raises:
      FileNotFoundError: an `asset:` path names nothing that is shipped.
      UserError: as `as_path`.
    """
    text = os.fspath(text)
    return assets.resolve(text) if text.startswith(assets.PREFIX) else as_path(text, name)


def is_there(text: str) -> bool:
    """Returns whether a text, whatever else it means, is the path of something on this machine."""
    try:
        return bool(text) and not SCHEME.match(text) and as_path(text, "").exists()
    except ValueError:
        return False


def split_step(text: str) -> tuple[str, str]:
    """Returns path and step of "PATH@step".

    The step is empty for "PATH", whose folders may have @s. If something of the whole name is
    there, that is the path.
    """
    path, at, step = text.rpartition("@")
    return (path, step) if at and "/" not in step and not is_there(text) else (text, "")


def matching(folder: str | os.PathLike, pattern: str) -> list[epath.Path]:
    """Returns what lies in a folder under names that match, sorted; nothing if there is no folder.

    Unlike epath's glob, it does not take the folder's own name for a pattern.

    Args:
      folder: a folder, local or in a bucket.
      pattern: the pattern of a name, in which * stands for any characters, and everything else for
        itself. As in a shell, it finds names that begin with a dot only if it begins with one.
    """
    folder = epath.Path(folder)
    if not folder.is_dir():
        return []
    escaped = re.sub(r"([?\[])", r"[\1]", pattern)
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry != folder  # Buckets may list a folder in itself.
        and fnmatch.fnmatchcase(entry.name, escaped)
        and (pattern.startswith(".") or not entry.name.startswith("."))
    )


def partial_path(path: epath.Path) -> epath.Path:
    """Returns a path beside another, for what is written before it is moved to the other.

    Its name is new, and short.
    """
    return path.parent / f"{uuid.uuid4().hex}{PARTIAL}"


def remove_partials(folder: epath.Path) -> None:
    """Removes what programs that were killed have left half-written in a folder."""
    for path in matching(folder, f"*{PARTIAL}"):
        if LEFT.fullmatch(path.name):
            path.rmtree() if path.is_dir() else path.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file so that a reader, or a kill, finds either the old file or the new one.

    A symbolic link stays one, and what it points to is written. To a device or a pipe, the content
    is written directly.

    Raises:
      OSError: the file can't be written; what was there before stays.
    """
    with whole_file(path) as place:
        place.write_bytes(content)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[epath.Path]:
    """Yields where to write a file, which is moved to its own path once it is whole.

    It is `write_whole` for what is written piece by piece.
    """
    path = epath.Path(path)
    with clear_full_disk(path):
        # In a bucket, a file appears only once it is complete.
        if in_bucket(path) or _is_special(path):
            yield path
            return
        path = epath.Path(os.path.realpath(path))
        partial = partial_path(path)
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _is_special(path: epath.Path) -> bool:
    """Returns whether something other than a file, such as a device or a pipe, is there."""
    return path.exists() and not os.path.isfile(path)


@contextlib.contextmanager
def clear_full_disk(path: str | os.PathLike) -> Iterator[None]:
    """Adds the path and the mend to the error of a disk, or a quota, that is full.

    Args:
      path: the path that is being written.
    """
    try:
        yield
    except OSError as error:
        # One that is clear already is said again of the path that the user knows, the outermost.
        first = error.__cause__ if isinstance(error.__cause__, OSError) else error
        if first.errno not in FULL:
            raise
        raise OSError(
            f"Cannot write {os.fspath(path)} ({first.strerror}): what is there stays; make room, "
            "and the same command goes on."
        ) from first


def prepare_folder(text: str, name: str) -> epath.Path:
    """Makes a folder and tries to write to it, before hours of compute end in an error.

    Args:
      text: the folder, as in `as_path`.
      name: what named it, for messages.

    Returns:
      The folder's path.

    Raises:
      UserError: nothing can be there, or the folder cannot be made or written to.
    """
    folder = as_path(text, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _try_to_write(partial_path(folder / PARTIAL))
    except Exception as error:  # Buckets' libraries each raise their own kinds.
        raise UserError(
            f"{name}={folder} cannot be written to ({_reason(error)}): choose a folder that you can"
            " write to."
        ) from None
    return folder


def prepare_file(text: str, name: str) -> epath.Path:
    """Tries to write where a file is to be, before hours of compute end in an error.

    Args:
      text: the file, as in `as_path`.
      name: what named it, for messages.

    Returns:
      The file's path.

    Raises:
      OSError, UserError: the file can't be written; what it holds, if it is there, stays.
    """
    path = as_path(text, name)
    if _is_folder(path):
        raise IsADirectoryError(f"{name}={path} is a folder: name a file in it.")
    target = path
    if not in_bucket(path):
        if _is_special(path):
            return path
        target = epath.Path(os.path.realpath(path))
        if not target.parent.is_dir():
            raise FileNotFoundError(f"There is no folder {target.parent} for {name}: make it.")
    try:
        _try_to_write(partial_path(target))
    except Exception as error:  # Buckets' libraries each raise their own kinds.
        raise OSError(
            f"{name}={path} cannot be written ({_reason(error)}): choose a folder that you can "
            "write to."
        ) from None
    return path


def _try_to_write(probe: epath.Path) -> None:
    try:
        probe.write_bytes(b"0" * 4096)
        probe.unlink()
    except Exception:
        with contextlib.suppress(Exception):
            probe.unlink(missing_ok=True)
        raise


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"


def _is_folder(path: epath.Path) -> bool:
    try:
        return path.is_dir()
    except Exception:  # Buckets' libraries raise many kinds. Writing there says what is wrong.
        return False


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: the file is not JSON, or holds no JSON object.
    """
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; the folder is incomplete.")
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); copy it again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object, not {type(value).__name__}.")
    return value


def readable_size(size: float) -> str:
    """Returns a number of bytes as a person reads it."""
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"
