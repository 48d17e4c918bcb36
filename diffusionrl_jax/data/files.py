"""Files that are whole or not there, on disks and in buckets."""

import uuid

from etils import epath


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
