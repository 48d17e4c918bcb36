"""Finds files of the Hugging Face hub in huggingface_hub's cache, or brings them there, checked.

huggingface_hub downloads, goes on where a download broke off, has processes that share a cache take
turns, and checks a file's size. It takes what lies in its cache for whole. Here every file is also
compared with the digest that the hub states for it: the SHA-256 of large files (LFS), git's SHA-1
of small ones. A file that has been checked is not read again until its size or time changes.

What is in the cache is used as it is, without asking the hub whether there is something newer; but
where it is not what `Need.is_preferred` says, the hub is asked whether the same revision has that.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import huggingface_hub
from absl import logging
from huggingface_hub import constants
from huggingface_hub.hf_api import RepoFile

from diffusionrl_jax.data import hub_cache, hub_errors, hub_transfer
from diffusionrl_jax.data.files import read_json, readable_size, write_whole

HUB_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
ATTEMPTS = 2  # A file that arrives damaged is asked for once more.


@dataclasses.dataclass(frozen=True)
class Need:
    """What is needed of a repository.

    Attributes:
      repository: the repository, as "owner/name".
      choose: takes the names of the repository's files, and a function that reads one of them as
        JSON, and returns the names of those that are needed. It raises FileNotFoundError where they
        are not a whole set; for files on the hub its message is for the user.
      candidates: the names that `choose` may be interested in; all files, if empty.
      kind: "model" or "dataset".
      follow: takes the names that were chosen, and returns what is needed besides.
      label: what messages call it; the repository, if empty.
      is_preferred: takes the names that were chosen, and returns whether no list of files would
        make `choose` prefer others. Where it would, what lies in the cache, put there by another
        program maybe, is compared with what the hub lists.
    """

    repository: str
    choose: Callable[[Collection[str], Callable[[str], Mapping[str, Any]]], Sequence[str]]
    candidates: tuple[str, ...] = ()
    kind: str = "model"
    follow: Callable[[Collection[str]], tuple["Need", ...]] = lambda names: ()
    label: str = ""
    is_preferred: Callable[[Collection[str]], bool] = lambda names: True


@dataclasses.dataclass(frozen=True)
class Held:
    """A whole set of files that is on this machine.

    Attributes:
      repository, revision: where it is from; the revision is a commit.
      folder: the folder that holds it.
      files: the files' names in the folder.
    """

    repository: str
    revision: str
    folder: pathlib.Path
    files: tuple[str, ...]

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum((self.folder / name).stat().st_size for name in self.files)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What has to be downloaded.

    Attributes:
      need: what it is needed for.
      revision: the commit.
      files: all files of the set.
      missing: the files that are not on this machine.
    """

    need: Need
    revision: str
    files: tuple[RepoFile, ...]
    missing: tuple[RepoFile, ...]


def fixed_files(repository: str, *names: str, kind: str = "model") -> Need:
    """Describes the need of files whose names are known, and all of which are needed.

    Args:
      repository: the repository, as "owner/name".
      *names: the files' names.
      kind: "model" or "dataset".
    """

    def choose(listed, read):
        del read
        if absent := [name for name in names if name not in listed]:
            raise FileNotFoundError(f"{repository} on the Hugging Face hub has no {absent[0]}.")
        return names

    return Need(repository, choose, names, kind, label=f"{repository} ({', '.join(names)})")


def fetch(needs: Sequence[Need], missing: Sequence[str] = ()) -> list[Held]:
    """Brings all that is needed to this machine, with all that follows from it.

    All that is missing is found out before anything large is downloaded, and said in one message.
    Before it downloads, it says how much.

    Args:
      needs: what is needed.
      missing: what else is known to be missing, a sentence each, for the message.

    Returns:
      What is on this machine, in the order of `needs`.

    Raises:
      FileNotFoundError: something is not here, and can't be brought; it lists all such things.
      OSError: a download broke off or arrived damaged; started again, it goes on.
    """
    found: dict[int, Held | Plan] = {}
    problems: list[str] = []
    unreachable: list[tuple[str, Exception]] = []
    queue = list(needs)
    for number, need in enumerate(queue):  # The queue grows by what follows.
        try:
            held = find(need)
            if held is None and unreachable:  # The hub is not asked a second time.
                raise unreachable[0][1]
            found[number] = plan(need) if held is None else _preferred(need, held)
        except (OSError, ValueError) as error:
            if hub_errors.is_unreachable(error):
                unreachable.append((need.label or need.repository, error))
                queue.extend(need.follow(need.candidates))
            else:
                problems.append(hub_errors.explain(error, need.repository, need.kind))
            continue
        files = found[number].files
        names = [file if isinstance(file, str) else file.path for file in files]
        queue.extend(need.follow(names))
    if unreachable:
        problems.append(hub_errors.explain_unreachable(unreachable))
    problems.extend(missing)
    if len(problems) == 1:
        raise FileNotFoundError(problems[0])
    if problems:
        listed = " ".join(f"({number}) {text}" for number, text in enumerate(problems, start=1))
        raise FileNotFoundError(f"Several things are missing: {listed}")
    plans = [each for each in found.values() if isinstance(each, Plan)]
    _announce(plans)
    for each in plans:
        _download(each)
    return [_as_held(found[number], need) for number, need in enumerate(needs)]


def _preferred(need: Need, held: Held) -> Held | Plan:
    """Returns what is held, or what is to be downloaded where the repository has what is preferred.

    Where the hub can't be asked, there is a warning, and what is held is returned.
    """
    if need.is_preferred(held.files):
        return held
    try:
        planned = plan(need, held.revision)
    except (OSError, ValueError) as error:
        reason = hub_errors.explain(error, need.repository, need.kind)
        logging.warning(
            "%s is taken from the cache as it is, with %s, since the Hugging Face hub could not be "
            "asked whether there is better: %s",
            need.label or need.repository,
            ", ".join(name for name in held.files if not need.is_preferred([name])),
            reason.partition("\n")[0],
        )
        return held
    return planned if planned.missing else held


def _as_held(found: Held | Plan, need: Need) -> Held:
    if isinstance(found, Held):
        return found
    names = tuple(file.path for file in found.files)
    return Held(need.repository, found.revision, _snapshot(need, found.revision), names)


def find(need: Need) -> Held | None:
    """Returns what is in the cache already, checked, or None where it is not whole.

    A file that is not what the hub said it is is removed, with a warning.
    """
    try:
        home = hub_cache.home(need.repository, need.kind)
        revision = (home / "refs" / "main").read_text().strip()
    except OSError:
        return None
    folder = _snapshot(need, revision)
    listed = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

    def check(name: str) -> pathlib.Path:
        if not hub_cache.is_whole(folder / name):
            hub_cache.remove_damaged(folder / name)
            raise FileNotFoundError
        return folder / name

    try:
        names = tuple(need.choose(listed, lambda name: read_json(check(name))))
        for name in names:
            check(name)
    except FileNotFoundError:
        return None
    return Held(need.repository, revision, folder, names)


def plan(need: Need, revision: str = "") -> Plan:
    """Asks the hub what there is to download.

    Args:
      need: what is needed.
      revision: the commit; the newest, if empty.

    Raises:
      OSError, ValueError: huggingface_hub raises it, or the repository lacks what is needed.
    """
    api = huggingface_hub.HfApi()
    of: dict[str, Any] = {"repo_type": need.kind}
    only: Any = ["sha"]
    if not revision:
        newest = api.repo_info(need.repository, timeout=hub_transfer.TIMEOUT, **of, expand=only).sha
        assert newest is not None  # The hub was asked for it.
        revision = newest
    of["revision"] = revision
    if need.candidates:
        entries = api.get_paths_info(need.repository, list(need.candidates), **of)
    else:
        entries = api.list_repo_tree(need.repository, recursive=True, **of)
    listed = {file.path: file for file in entries if isinstance(file, RepoFile)}
    read = lambda name: read_json(_download_file(need, revision, listed[name]))
    files = tuple(listed[name] for name in need.choose(listed, read))
    folder = _snapshot(need, revision)
    missing = tuple(
        file for file in files if not hub_cache.is_whole(folder / file.path, _digest(file))
    )
    return Plan(need, revision, files, missing)


def _announce(plans: Sequence[Plan]) -> None:
    """Says how much is to be downloaded, and refuses a disk that has no room for it."""
    sizes = {
        (each.need.repository, file.path): file.size for each in plans for file in each.missing
    }
    total = sum(sizes.values())
    if not total:
        return
    cache = pathlib.Path(constants.HF_HUB_CACHE)
    logging.info(
        "Fetching %s from the Hugging Face hub into %s: %s.",
        readable_size(total),
        cache,
        ", ".join(dict.fromkeys(repository for repository, _ in sizes)),
    )
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if free < total:
        raise OSError(
            f"{cache} has {readable_size(free)} free, and {readable_size(total)} are to be fetched:"
            " make room, or name a folder on a larger disk with the environment variable HF_HOME."
        )


def _download(planned: Plan) -> None:
    """Downloads what is missing, and then states in the cache that the revision is there."""
    need = planned.need
    # The largest comes last, so that a set that broke off is never taken for a smaller one.
    for file in sorted(planned.missing, key=lambda file: file.size):
        try:
            _download_file(need, planned.revision, file)
        except (OSError, ValueError, RuntimeError) as error:  # Xet's are RuntimeErrors.
            raise OSError(
                hub_errors.explain_download(error, need.repository, need.kind, file.path)
            ) from error
    write_whole(_reference(need), planned.revision.encode())


def _download_file(need: Need, revision: str, file: RepoFile) -> pathlib.Path:
    """Downloads a file, twice if it arrives damaged, and returns its path."""
    blobs = hub_cache.home(need.repository, need.kind) / "blobs"
    arriving = blobs / f"{_digest(file)}.incomplete"
    for _ in range(ATTEMPTS):
        with hub_transfer.progress(arriving, file.path, file.size):
            path = pathlib.Path(
                huggingface_hub.hf_hub_download(
                    need.repository, file.path, repo_type=need.kind, revision=revision
                )
            )
        if hub_cache.is_whole(path, _digest(file)):
            return path
        hub_cache.remove_damaged(path)
    raise hub_errors.DamagedError(
        f"{file.path} of {need.repository} arrived damaged {ATTEMPTS} times: its digest is not the "
        "one that the Hugging Face hub tells of it. It is removed. Try again later, or without the "
        "proxy or mirror between (HF_ENDPOINT)."
    )


def _digest(file: RepoFile) -> str:
    return file.lfs.sha256 if file.lfs else file.blob_id


def _snapshot(need: Need, revision: str) -> pathlib.Path:
    return hub_cache.home(need.repository, need.kind) / "snapshots" / revision


def _reference(need: Need) -> pathlib.Path:
    path = hub_cache.home(need.repository, need.kind) / "refs" / "main"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
