"""Files that are whole or not there, on disks and in buckets."""

import fnmatch
import uuid
from collections.abc import Iterator

from etils import epath
from etils.epath import gpath, register


@register.register_path_cls
class LiteralPath(gpath.PosixGPath):
    """A path whose own characters are never taken for a pattern.

    `glob` of epath's own paths takes the folder's name for a part of the pattern, so that a folder
    with a bracket in its name seems to be empty; libraries that are given one do as well.
    """

    def glob(self, pattern: str) -> Iterator["LiteralPath"]:
        """What lies in this folder by a pattern, each part of it as of `fnmatch`."""
        first, _, rest = pattern.partition("/")
        for path in self.iterdir():
            if fnmatch.fnmatchcase(path.name, first):
                if not rest:
                    yield path
                elif path.is_dir():
                    yield from path.glob(rest)


def in_bucket(path: str | epath.Path) -> bool:
    """Whether a path is not on a disk, but `gs://` or the like."""
    return "://" in str(path)


def write_whole(path: str | epath.Path, content: bytes) -> None:
    """Writes a file so that a reader, or a kill, finds either the old or the new one."""
    path = epath.Path(path)
    if in_bucket(path):  # There, a file appears when it is complete.
        path.write_bytes(content)
        return
    partial = path.parent / f"{path.name}.{uuid.uuid4().hex[:8]}.partial"
    partial.write_bytes(content)
    partial.replace(path)
