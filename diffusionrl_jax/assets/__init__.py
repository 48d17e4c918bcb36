"""Finds what is shipped by its name: the emoji world's weights, word lists, prompts."""

import importlib.resources
import pathlib

from etils import epath

PREFIX = "asset:"


def resolve(path: str) -> epath.Path:
    """Turns a path from a config into a path to open.

    Args:
      path: `asset:emoji/image_reward` names a folder shipped in this package; anything else (a
        local path, `gs://...`) is taken as it is.

    Returns:
      The path.

    Raises:
      FileNotFoundError: an `asset:` path names nothing that is shipped, or leaves this package.
    """
    if not path.startswith(PREFIX):
        return epath.Path(path)
    root = epath.Path(str(importlib.resources.files(__name__)))
    resolved = root / path.removeprefix(PREFIX)
    # Neither `..` nor an absolute path nor a link leads elsewhere. (epath follows no links.)
    is_inside = pathlib.Path(root).resolve() in pathlib.Path(resolved).resolve().parents
    if not (is_inside and resolved.exists()):
        shipped = sorted(
            f"{PREFIX}{folder}/{entry.name}"
            for folder in ("emoji", "prompts", "words")
            for entry in (root / folder).iterdir()
        )
        raise FileNotFoundError(f"{path!r} is not shipped; these are: {shipped}.")
    return resolved
