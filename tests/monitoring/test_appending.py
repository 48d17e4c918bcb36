"""Files that grow by whole records, against TensorBoard's format."""

import pytest

from diffusionrl_jax.monitoring import metrics


def test_files_end_with_whole_records(tmp_path):
    file = metrics.AppendedFile(tmp_path / "file")
    file.append(b"first\n")

    class Short:
        """Takes three bytes, and has no more room."""

        def __init__(self, whole):
            self.whole = whole

        def __getattr__(self, name):
            return getattr(self.whole, name)

        def write(self, content):
            if self.whole.tell() > 8:
                raise OSError(28, "No space left on device")
            return self.whole.write(content[:3])

    whole, file._file = file._file, Short(file._file)
    with pytest.raises(OSError, match="No space"):
        file.append(b"second\n")
    assert (tmp_path / "file").read_bytes() == b"first\n"
    file._file = whole
    file.append(b"third\n")
    assert (tmp_path / "file").read_bytes() == b"first\nsecond\nthird\n"
