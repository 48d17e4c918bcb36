"""Says which prompts and which scorers an evaluation has, by digests of the files they are from.

`runs/identities.py` says it of models.
"""

import hashlib
import inspect
from collections.abc import Sequence
from typing import Any

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.data.file_digests import files_digest, folder_digest
from diffusionrl_jax.data.files import is_there, resolve
from diffusionrl_jax.data.prompt_sources import prompt_files, prompt_note
from diffusionrl_jax.rewards import REWARDS, folders, http_scorer, imports
from diffusionrl_jax.rewards.scorers import HOST_REWARD, WEIGHTED_SUM
from diffusionrl_jax.runs.identities import held_digest

UNKNOWN = "not known"  # Of what is behind an address.


def identify_prompts(chosen: Config, texts: Sequence[str]) -> dict[str, Any]:
    """Describes an evaluation set: its config, and digests of its texts and of their files.

    Args:
      chosen: from `make_evaluation_set`.
      texts: the prompt of each image.

    Returns:
      What JSON can hold. The digest of the files is "" for prompts that are made up; "note" is
      there where something is to be said beside the numbers.

    Raises:
      UserError, OSError: a file is missing or damaged.
    """
    files = prompt_files(chosen.prompts)
    found = {
        "source": chosen.prompts,
        "images": len(texts),
        "group_size": chosen.group_size,
        "different": len(set(texts)),
        "texts": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        "files": files_digest({path.name: path for path in files}) if files else "",
        "scorers": list(chosen.scorers),
    }
    return found | _note(prompt_note(chosen.prompts))


def identify_scorer(scorer: Config) -> dict[str, Any]:
    """Describes a scorer: its config, and a digest of the files that it is read from.

    Args:
      scorer: from `make_scorer` or `make_weighted_sum`.

    Returns:
      What JSON can hold. The digest is that of the folder; of a reward of one's own that of its
      module's source, and of what its path names, if that is there; "" of one without files;
      `UNKNOWN` of a server's.

    Raises:
      UserError, OSError: its files are missing, or its module cannot be imported.
    """
    if scorer.reward == WEIGHTED_SUM:
        parts = scorer.options.scorers
        weights = scorer.options.weights.to_dict()
        normalised = bool(scorer.options.get("normalised", False))
        return {
            "reward": WEIGHTED_SUM,
            "weights": weights,
            "normalised": normalised,
            "parts": {name: identify_scorer(part) for name, part in parts.items()},
        }
    found = {
        "reward": scorer.reward,
        "path": scorer.path,
        "options": scorer.options.to_dict(),
        "files": _scorer_files(scorer.reward, scorer.path),
    }
    substitute = getattr(REWARDS.get(scorer.reward), "substitute", "")
    return found | _note(substitute)


def _scorer_files(reward: str, path: str) -> str:
    if reward == HOST_REWARD:
        return UNKNOWN if http_scorer.is_address(path) else _source(path)
    if ":" in reward:
        source = _source(reward)
        if not is_there(path):
            return source
        return hashlib.sha256(f"{source} {folder_digest(path)}".encode()).hexdigest()
    if not path:
        return ""
    if folders.is_hub_id(reward, path):
        return held_digest(folders.hold(reward, path))
    return folder_digest(resolve(path, "The path of a reward model"))


def _source(name: str) -> str:
    """Returns the digest of the file that a module's attribute is from."""
    try:
        file = inspect.getsourcefile(imports.resolve(name))
    except TypeError:  # It is built in, or an object of no source.
        file = None
    return folder_digest(file) if file else UNKNOWN


def _note(text: str) -> dict[str, str]:
    return {"note": text} if text else {}
