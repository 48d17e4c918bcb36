"""Looks for all that a config names at once, and brings it here, before any of it is opened."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from absl import logging
from etils import epath

from diffusionrl_jax.algorithms import pairs_of
from diffusionrl_jax.data import hub_files, prompt_sources, records, sources
from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.data.files import (
    as_path,
    in_bucket,
    partial_path,
    readable_size,
    remove_partials,
    resolve,
    write_whole,
)
from diffusionrl_jax.data.hub_files import Held, Need
from diffusionrl_jax.distributed import processes
from diffusionrl_jax.experiments import fields
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models import lora_files
from diffusionrl_jax.models.folders import hub
from diffusionrl_jax.rewards import folders
from diffusionrl_jax.rewards.scorers import WEIGHTED_SUM

MODEL, LORA, PROMPTS, PICTURES, PAIRS = "model", "lora", "prompts", "pictures", "pairs"
PICTURE_KINDS = (*records.KINDS, "latents")
EMOJI = "emoji:"
COPY_BYTES = 2**24
# This file lies beside what was copied once that is whole.
MARK_FILE = "fetched.json"


@dataclasses.dataclass(frozen=True)
class Named:
    """Something that a config names.

    Attributes:
      kind: `MODEL`, `LORA`, `PROMPTS`, `PICTURES` or `PAIRS`, or the name of the reward whose
        folder it is.
      name: its name in the config.
      fields: the fields of the config that name it.
    """

    kind: str
    name: str
    fields: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Fetched:
    """Something that a config names and that came from the hub.

    Attributes:
      named: what the config names.
      held: where it is on this machine.
    """

    named: Named
    held: Held


def _fields(config: Config, for_training: bool) -> Iterator[tuple[str, str, str]]:
    """Yields the kind, name and field of all that is opened when a config is trained.

    Args:
      config: see `experiments/config.py`.
      for_training: whether it is trained, or else only evaluated, for which less is opened.
    """
    yield MODEL, config.model, "config.model"
    if config.lora.start:
        yield LORA, config.lora.start, "config.lora.start"
    if for_training:
        for name, task in config.tasks.items():
            yield from _scorer_fields(task.scorer, f"config.tasks.{name}.scorer")
            yield PROMPTS, task.prompts, f"config.tasks.{name}.prompts"
        if config.pretraining.weight:
            yield PICTURES, config.pretraining.pictures, "config.pretraining.pictures"
        if (pairs := pairs_of(config)) is not None:
            field, name = pairs
            yield PAIRS, name, field
    evaluation = config.evaluation
    for name, chosen in evaluation.sets.items():
        yield PROMPTS, chosen.prompts, f"config.evaluation.sets.{name}.prompts"
    used = {name for chosen in evaluation.sets.values() for name in chosen.scorers}
    for name, scorer in evaluation.scorers.items():
        if name in used:
            yield from _scorer_fields(scorer, f"config.evaluation.scorers.{name}")


def _scorer_fields(scorer, field: str) -> Iterator[tuple[str, str, str]]:
    """Yields the kind, name and field of a scorer's folder, or of each part of a weighted sum."""
    if scorer.reward == WEIGHTED_SUM:
        for name, part in scorer.options.scorers.items():
            yield from _scorer_fields(part, f"{field}.options.scorers.{name}")
    else:
        yield scorer.reward, scorer.path, f"{field}.path"


def list_named(config: Config, for_training: bool = True) -> list[Named]:
    """Returns all that a config names, each thing once.

    Args:
      config, for_training: as in `bring`.
    """
    fields: dict[tuple[str, str], list[str]] = {}
    for kind, name, field in _fields(config, for_training):
        if field not in (known := fields.setdefault((kind, name), [])):
            known.append(field)
    return [Named(*key, tuple(names)) for key, names in fields.items()]


def _is_on_hub(named: Named) -> bool:
    if named.kind in (MODEL, LORA):
        return bool(named.name) and hub.is_hub_id(named.name, named.fields[0])
    if named.kind == PROMPTS:
        return _prompt_source(named).kind == prompt_sources.HUB
    # Besides these, only a reward with a folder may be on the hub.
    return folders.is_hub_id(named.kind, named.name)


def _describe(named: Named) -> Need | None:
    if named.kind == MODEL:
        return hub.describe(named.name)
    if named.kind == LORA:
        return lora_files.describe(named.name)
    if named.kind == PROMPTS:
        return prompt_sources.describe_hub_file(_prompt_source(named))
    return folders.describe(named.kind, named.name)


def _prompt_source(named: Named) -> sources.Source:
    return sources.parse(named.name, (EMOJI.removesuffix(":"), *prompt_sources.KINDS))


def _missing(named: Named) -> str:
    """Returns what is wrong with the path of something not on the hub, or "" if nothing is."""
    try:
        if named.kind == MODEL and named.name:
            hub.locate(named.name, named.fields[0])
        elif named.kind == LORA:
            lora_files.locate(named.name, named.fields[0])
        elif named.kind == PROMPTS:
            prompt_sources.prompt_files(named.name)
            return _missing_records(named, _prompt_source(named))
        elif named.kind == PICTURES:
            return _missing_records(named, sources.parse(named.name, PICTURE_KINDS))
        elif named.kind == PAIRS and named.name:  # The method itself refuses the empty path.
            if not as_path(named.name, named.fields[0]).exists():
                return (
                    f"{named.fields[0]}: there is no {named.name}: name a parquet file, or a "
                    "folder of some; docs/methods.md."
                )
        elif named.kind in folders.LAYOUTS and not (
            named.name and resolve(named.name, named.fields[0]).exists()
        ):
            return (
                f"{named.fields[0]}: {named.name or 'the empty path'} does not exist: give "
                f"{named.kind}'s folder, or a Hugging Face hub id; docs/reward_models.md."
            )
    except FileNotFoundError as error:
        return str(error) if named.kind == LORA else f"{named.fields[0]}: {error}"
    return ""


def _missing_records(named: Named, source: sources.Source) -> str:
    """Returns as `_missing` for pictures, or for prompts that are records beside pictures.

    Raises:
      FileNotFoundError: tensorflow-datasets finds no such dataset.
    """
    if source.kind == "tfds":
        records.open_builder(source)
    elif source.kind in PICTURE_KINDS and not as_path(source.name, source.kind).exists():
        return f"{named.fields[0]}: there is no folder {source.name}; docs/data.md."
    return ""


def bring(
    config: Config,
    for_training: bool = True,
    only_hub: bool = False,
    kinds: Collection[str] = (),
    models: Sequence[Named] = (),
) -> list[Fetched]:
    """Brings all that a config names to this machine: fetches and converts what is not there, once.

    Each of several processes does so, into its own machine's cache, and those that share one take
    turns. It is made sure that all have the same revisions.

    Args:
      config: see `experiments/config.py`.
      for_training: whether what is trained with is needed too, beside what is evaluated with.
      only_hub: whether folders and files that the config names by a path may be missing here.
      kinds: the kinds of what is opened, as in `Named`; empty means all.
      models: what is opened besides, and named elsewhere.

    Returns:
      What came from the hub, now or earlier.

    Raises:
      FileNotFoundError: something is missing; it lists all that is, before anything large is
        fetched.
      OSError, UserError: see `hub_files.fetch` and `conversion.convert`.
    """
    fields.check(config)
    everything = [*list_named(config, for_training), *models]
    everything = [named for named in everything if not kinds or named.kind in kinds]
    on_hub = [named for named in everything if _is_on_hub(named)]
    others = () if only_hub else (named for named in everything if named not in on_hub)
    missing = [text for named in others if (text := _missing(named))]
    needs = [need for named in on_hub if (need := _describe(named)) is not None]
    hub_files.fetch(needs, missing)
    fetched = [Fetched(named, _hold(named)) for named in on_hub]
    for line in describe(fetched):
        logging.info("The config names %s.", line)
    _check_same_everywhere(fetched)
    return fetched


def _hold(named: Named) -> Held:
    if named.kind in (MODEL, LORA, PROMPTS):
        need = _describe(named)
        assert need is not None  # Only what is on the hub comes here.
        (held,) = hub_files.fetch([need])
        return held
    return folders.hold(named.kind, named.name)


def describe(fetched: Sequence[Fetched]) -> list[str]:
    """Returns a line for people about each thing: its repository, revision, size and place."""
    different = {(each.held.repository, each.held.folder): each.held for each in fetched}
    return [
        f"{held.repository} at revision {held.revision[:12]}, {readable_size(held.size)} in "
        f"{held.folder}"
        for held in different.values()
    ]


def _check_same_everywhere(fetched: Sequence[Fetched]) -> None:
    """Refuses processes that have different revisions, or different files, in their caches."""
    held = [(each.named.name, each.held.revision, sorted(each.held.files)) for each in fetched]
    digest = hashlib.sha256(repr(held).encode()).digest()[:4]
    if len(set(processes.gather(np.frombuffer(digest, np.uint32)).ravel().tolist())) > 1:
        raise UserError(
            "The processes have different revisions of what the config names in their caches, or "
            "different files of one, as the log of each says: remove those that are older or lack "
            "files, or fetch into a folder that all can read (`python -m diffusionrl_jax.fetch "
            "--output=FOLDER`) and train from there."
        )


def copy(fetched: Sequence[Fetched], output: str) -> list[str]:
    """Copies what was fetched to a folder, and leaves what is there whole as it is.

    Args:
      fetched: what came from the hub, from `bring`.
      output: a folder, local or remote.

    Returns:
      The flags with which a config takes everything from there, not quoted.
    """
    overrides = []
    for each in fetched:
        named, held = each.named, each.held
        # One folder for each kind and name, whose characters every file system takes.
        place = named.name.partition("?")[0].replace("/", "--").replace(":", "--")
        target = epath.Path(output) / named.kind / place
        _copy_whole(held, target)
        value = str(target)
        if named.kind == LORA:
            value = str(target / held.files[0])
        if named.kind == PROMPTS:
            _, question, options = named.name.partition("?")
            value = f"{target / held.files[0]}{question}{options}"
        overrides += [f"--{field}={value}" for field in named.fields]
    return overrides


def _copy_whole(held: Held, target: epath.Path) -> None:
    sizes = {name: (held.folder / name).stat().st_size for name in held.files}
    origin = {"repository": held.repository, "revision": held.revision, "files": sizes}
    mark = target / MARK_FILE
    if mark.exists():
        if mark.read_text() == _as_text(origin) and _sizes(target, tuple(sizes)) == sizes:
            logging.info("%s is there already.", target)
            return
        mark.unlink()
    for folder in {(target / name).parent for name in held.files}:
        remove_partials(folder)
    logging.info("Copying %s to %s.", readable_size(sum(sizes.values())), target)
    for name in held.files:
        _copy(held.folder / name, target / name)
    write_whole(mark, _as_text(origin).encode())


def _copy(source: pathlib.Path, target: epath.Path) -> None:
    """Copies a file, and leaves nothing half-written where it is interrupted."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A bucket has no renaming that is atomic. What lies there without a mark counts for nothing.
    partial = target if in_bucket(target) else partial_path(target)
    try:
        with source.open("rb") as read, partial.open("wb") as written:
            shutil.copyfileobj(read, written, COPY_BYTES)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if partial != target:
        partial.replace(target)


def _as_text(origin: dict) -> str:
    return json.dumps(origin, indent=2) + "\n"


def _sizes(folder: epath.Path, names: Sequence[str]) -> dict[str, int]:
    return {name: (folder / name).stat().length for name in names if (folder / name).exists()}
