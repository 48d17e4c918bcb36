"""Makes paths for libraries that look for files by patterns."""

from collections.abc import Iterator

from etils import epath
from etils.epath import gpath, register

from diffusionrl_jax.data.files import matching


@register.register_path_cls
class LiteralPath(gpath.PosixGPath):
    """A path whose own characters are never taken for a pattern.

    `glob` of epath's own paths takes the folder's name for a part of the pattern, so that a folder
    with a bracket in its name seems to be empty; libraries that are given one do as well.
    """

    def glob(self, pattern: str) -> Iterator[epath.Path]:
        """Yields what lies in this folder by a pattern.

        Args:
          pattern: names joined by slashes, each of them a pattern as in `files.matching`.
        """
        first, _, rest = pattern.partition("/")
        for path in matching(self, first):
            if not rest:
                yield path
            elif path.is_dir():
                yield from path.glob(rest)
