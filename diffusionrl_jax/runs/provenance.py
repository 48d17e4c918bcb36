"""Records what is needed to repeat a run: its config, versions and revision."""

import importlib.metadata
import json
import pathlib
import platform
import subprocess
from collections.abc import Mapping

import jax
from absl import logging
from etils import epath

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.data.files import read_json, write_whole

FETCHED = "fetched"  # The name in versions.json of what came from the Hugging Face hub.


def write_run_information(
    workdir: str, config: Config, revisions: Mapping[str, str] | None = None
) -> None:
    """Writes config.json and versions.json, which have what is needed to repeat the run.

    Args:
      workdir: an existing folder.
      config: an `ml_collections.ConfigDict` or a dict. Values that JSON lacks become strings.
      revisions: the commit of each thing that came from the Hugging Face hub, by its name in the
        config.
    """
    if jax.process_index():
        return
    plain = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    packages = {  # pip may leave folders behind that have no name.
        name: d.version for d in importlib.metadata.distributions() if (name := d.metadata["Name"])
    }
    versions = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "git_revision": git_revision(),
        FETCHED: dict(revisions or {}),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }
    folder = epath.Path(workdir)
    content = json.dumps(plain, indent=2, default=str) + "\n"
    write_whole(folder / "config.json", content.encode())
    write_whole(folder / "versions.json", (json.dumps(versions, indent=2) + "\n").encode())


def first_revisions(workdir: str, revisions: Mapping[str, str]) -> dict[str, str]:
    """Returns the revisions that a run began with, and warns of what has another on the hub now.

    They are to be recorded again, so that there is a warning whenever the run is resumed.

    Args:
      workdir: the workdir of the run.
      revisions: those of now, as in `write_run_information`. What the run did not have before
        begins with its revision of now.
    """
    path = epath.Path(workdir) / "versions.json"
    first = dict(revisions) | (read_json(path).get(FETCHED, {}) if path.exists() else {})
    for name, revision in revisions.items():
        if first[name] != revision:
            logging.warning(
                "%s is at revision %s here, and was at %s when %s began: what is drawn and scored "
                "may differ from then. To hold a run to one revision, train from a copy "
                "(`python -m diffusionrl_jax.fetch --output=FOLDER`).",
                *(name, revision, first[name], workdir),
            )
    return first


def git_revision() -> str | None:
    """Returns the revision of this package's checkout, with "+changes" if it is modified.

    It is None if the package is not in a checkout of its own.
    """
    root = pathlib.Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if pathlib.Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None  # It is installed in another project's folder.
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None
