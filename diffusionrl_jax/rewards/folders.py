"""Finds the folder of a reward model that a config names: here, or brought from the hub.

A model that is published as a pickle is downloaded and turned into a folder once, which is kept
beside the hub's cache.
"""

import dataclasses
import functools
import importlib.util
import json
import pathlib
import re
import shutil
from collections.abc import Collection

from absl import logging
from etils import epath
from huggingface_hub.utils import WeakFileLock  # pyright: ignore[reportPrivateImportUsage]

from diffusionrl_jax.data import hub_cache, hub_files
from diffusionrl_jax.data.file_digests import file_digest
from diffusionrl_jax.data.files import is_there, read_json, remove_partials, write_whole
from diffusionrl_jax.data.hub_files import HUB_ID, Held, Need
from diffusionrl_jax.models.folders.tensor_files import PICKLED_SUFFIXES
from diffusionrl_jax.rewards import conversion
from diffusionrl_jax.rewards.checkpoint import (
    BERT_TOKENIZER_FILES,
    CLIP_TOKENIZER_FILES,
    CONFIG_FILE,
    WEIGHTS_FILE,
)

CLIP = "openai/clip-vit-large-patch14"
BERT = "google-bert/bert-base-uncased"
# The file that says what a converted folder was made from, and which files were written.
SOURCE_FILE = "source.json"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a reward model is published.

    Attributes:
      tokenizer: the names of the tokenizer's files.
      needs_tokenizer: whether a folder is useless without these files.
      pickle: the name of the file to convert where there are no safetensors. config.json and the
        tokenizer lie beside it, unless one of the next two says where the rest is; config.json is
        then optional.
      tokenizer_from: the repository with the tokenizer that belongs to the pickle.
      clip_from: the repository with the image tower that belongs to the pickle.
    """

    tokenizer: tuple[str, ...] = ()
    needs_tokenizer: bool = True
    pickle: str = "pytorch_model.bin"
    tokenizer_from: str = ""
    clip_from: str = ""

    @property
    def is_bare(self) -> bool:
        """Whether the pickle is published without the rest of a folder."""
        return bool(self.tokenizer_from or self.clip_from)


LAYOUTS = {
    "image_reward": Layout(BERT_TOKENIZER_FILES, pickle="ImageReward.pt", tokenizer_from=BERT),
    "hps_v2": Layout(CLIP_TOKENIZER_FILES, pickle="HPS_v2.1_compressed.pt", tokenizer_from=CLIP),
    "pick_score": Layout(CLIP_TOKENIZER_FILES),
    "clip_score": Layout(CLIP_TOKENIZER_FILES),
    "detection": Layout(CLIP_TOKENIZER_FILES),
    "requested_objects": Layout(CLIP_TOKENIZER_FILES),
    "statistical_parity": Layout(CLIP_TOKENIZER_FILES, needs_tokenizer=False),
    # trl-lib/ddpo-aesthetic-predictor has sac+logos+ava1-l14-linearMSE.pth under another name.
    "aesthetic": Layout(pickle="aesthetic-model.pth", clip_from=CLIP),
}


def is_hub_id(reward: str, path: str) -> bool:
    """Returns whether a path names a repository on the hub, or a pickle there, and nothing on disk.

    Args:
      reward: a name in `REWARDS`.
      path: the path, as in a config.
    """
    return reward in LAYOUTS and _parse(path) is not None and not is_there(path)


def _parse(path: str) -> tuple[str, str] | None:
    """Returns a path's repository and file ("" if none is named); None if it is no hub id."""
    match = re.fullmatch(rf"({HUB_ID})(?:/(.+))?", path)
    if match is None or (match[2] and not match[2].endswith(PICKLED_SUFFIXES)):
        return None
    return match[1], match[2] or ""


def describe(reward: str, path: str) -> Need | None:
    """Returns what must be fetched for a reward model; None if it has been converted already.

    Args:
      reward: a name in `LAYOUTS`.
      path: "owner/name", or "owner/name/file" for a pickle that is not called `Layout.pickle`.
    """
    parsed = _parse(path)
    assert parsed is not None  # Callers ask `is_hub_id` before.
    repository, file = parsed
    if find_converted(reward, path) is not None:
        return None
    layout = LAYOUTS[reward]
    pickle = file or layout.pickle
    candidates = (CONFIG_FILE, WEIGHTS_FILE, *layout.tokenizer, pickle)
    return Need(
        repository,
        functools.partial(_choose, repository, layout, pickle, bool(file)),
        candidates,
        follow=functools.partial(_follow, layout, pickle),
        # Where a folder is of use without a tokenizer, another reward may have left it without.
        is_preferred=lambda names: layout.needs_tokenizer or set(layout.tokenizer) <= set(names),
    )


def _choose(repository: str, layout: Layout, pickle: str, is_named: bool, listed, read):
    """Chooses which of the listed files of a repository are fetched.

    Raises:
      FileNotFoundError: the repository has no files that can be used, or a pickle and PyTorch is
        not installed.
    """
    del read
    tokenizer = layout.tokenizer if layout.needs_tokenizer else ()
    folder = (CONFIG_FILE, WEIGHTS_FILE, *tokenizer)
    to_convert = (pickle,) if layout.is_bare else (pickle, CONFIG_FILE, *tokenizer)
    for files in (to_convert,) if is_named else (folder, to_convert):
        if all(name in listed for name in files):
            if pickle in files and importlib.util.find_spec("torch") is None:
                raise FileNotFoundError(
                    f"{repository} is published as a pickle, which PyTorch is needed to read, "
                    f"once: {conversion.INSTALL_TORCH}."
                )
            optional = layout.tokenizer
            if files == (pickle,):
                optional = () if layout.clip_from else (CONFIG_FILE,)
            return [*files, *(name for name in optional if name in listed and name not in files)]
    raise FileNotFoundError(
        f"{repository} on the Hugging Face hub has neither {', '.join(folder)} nor "
        f"{', '.join(to_convert)}: see docs/reward_models.md for what can be read."
    )


def _follow(layout: Layout, pickle: str, names: Collection[str]) -> tuple[Need, ...]:
    """Returns what else must be fetched for a pickle without the rest of a folder."""
    if pickle not in names or not layout.is_bare:
        return ()
    needs = []
    if layout.tokenizer_from:
        needs.append(hub_files.fixed_files(layout.tokenizer_from, *layout.tokenizer))
    if layout.clip_from:
        needs.append(hub_files.fixed_files(layout.clip_from, CONFIG_FILE, WEIGHTS_FILE))
    return tuple(needs)


def locate(reward: str, path: str) -> str:
    """Returns the folder to load a reward model from, after fetching and converting it if needed.

    Args:
      reward: a name in `REWARDS`, or that of a reward of one's own.
      path: the path, as in a config. If it is no hub id, it is returned as it is.

    Raises:
      FileNotFoundError, OSError, UserError: see `hub_files.fetch` and `conversion.convert`.
    """
    return str(hold(reward, path).folder) if is_hub_id(reward, path) else path


def hold(reward: str, path: str) -> Held:
    """Returns the folder that `locate` finds for a hub id, with its files.

    The arguments and errors are those of `locate`.
    """
    if (converted := find_converted(reward, path)) is not None:
        return converted
    need = describe(reward, path)
    assert need is not None  # It has not been converted.
    (held,) = hub_files.fetch([need])
    if WEIGHTS_FILE in held.files:
        return held
    target = _converted_folder(reward, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Several processes of a machine, or several machines with one disk, take turns. There is one
    # lock for all targets, since what is half-written beside a target is removed.
    with WeakFileLock(f"{target.parent}.lock"):
        if (converted := find_converted(reward, path)) is None:
            _convert(reward, held, need, target)
            converted = find_converted(reward, path)
    assert converted is not None
    return converted


def _convert(reward: str, held: Held, need: Need, target: pathlib.Path) -> None:
    """Converts a fetched pickle into the folder `target`."""
    layout = LAYOUTS[reward]
    pickle = held.files[0]
    beside = dict(
        zip(
            [name for name in ("tokenizer", "clip") if getattr(layout, f"{name}_from")],
            [str(each.folder) for each in hub_files.fetch(need.follow(held.files))],
            strict=True,
        )
    )
    if not layout.is_bare:
        beside["tokenizer"] = str(held.folder)
    # The model may have another size than the published one.
    config = held.folder / CONFIG_FILE
    if CONFIG_FILE in held.files and "vision_config" in read_json(config):
        beside["config"] = str(config)
    logging.info("Converting %s of %s, once, into %s.", pickle, held.repository, target)
    shutil.rmtree(target, ignore_errors=True)  # It may be damaged, or left by a killed program.
    remove_partials(epath.Path(target.parent))
    conversion.convert(reward, str(held.folder / pickle), str(target), **beside)
    origin = {
        "repository": held.repository,
        "revision": held.revision,
        "file": pickle,
        "files": {path.name: file_digest(path) for path in target.iterdir()},
    }
    write_whole(target / SOURCE_FILE, (json.dumps(origin, indent=2) + "\n").encode())


def _converted_folder(reward: str, path: str) -> pathlib.Path:
    return hub_cache.cache_folder() / "converted" / "--".join([reward, *path.split("/")])


def find_converted(reward: str, path: str) -> Held | None:
    """Returns the folder that was made from a pickle, after checking its files' digests.

    It is None where there is none, or it is damaged.
    """
    folder = _converted_folder(reward, path)
    try:
        origin = json.loads((folder / SOURCE_FILE).read_bytes())
        files = origin["files"]
        is_whole = all(hub_cache.is_whole(folder / name, files[name]) for name in files)
        held = Held(origin["repository"], origin["revision"], folder, tuple(files))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        logging.warning("%s is damaged, and is made anew.", folder)
        return None
    return held
