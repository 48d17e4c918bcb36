"""Files that grow by whole records, also where a disk fills up and is emptied again."""

import contextlib
import os
import pathlib
import struct

from tensorboardX.record_writer import masked_crc32c

MOST_WAITING = 2**26  # In bytes. Beyond that the oldest records are given up.


class AppendedFile:
    """A file to append to, which ends with a whole record after every call.

    Only a kill in the middle of a call may leave a part of a record.

    Args:
      path: the path of the file, which is made if it is missing.
    """

    def __init__(self, path: pathlib.Path):
        self._file = path.open("ab", buffering=0)
        self._waiting: list[bytes] = []

    def append(self, record: bytes) -> None:
        """Appends a record, behind those that could not be written before.

        Raises:
          OSError: the record cannot be written now. It waits for the next call.
        """
        self._waiting.append(record)
        while sum(map(len, self._waiting)) > MOST_WAITING:
            self._waiting.pop(0)
        content = memoryview(b"".join(self._waiting))
        size = os.fstat(self._file.fileno()).st_size
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(size)
            raise
        self._waiting.clear()

    def close(self) -> None:
        """Closes the file. Records that still wait are lost."""
        self._file.close()


def as_record(content: bytes) -> bytes:
    """Returns a record in TensorFlow's format: the length, the content, and a checksum of each."""
    length = struct.pack("<Q", len(content))
    checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
    return length + checksums[0] + content + checksums[1]
