"""What a run keeps of each evaluation: every image's scores, and small pictures.

Each evaluation is one zip file in the run's folder "evaluations": scores.json, and a picture a
file.
"""

import dataclasses
import io
import json
import urllib.parse
import zipfile
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging
from etils import epath
from PIL import Image

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.data.file_digests import settings_digest
from diffusionrl_jax.data.files import matching, write_whole
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.monitoring.images import to_uint8

FOLDER = "evaluations"
SCORES = "scores.json"
MOST_PICTURES = 256  # Of each set.
MOST_PIXELS = 256  # Of a picture's longer side.
LOSSLESS_PIXELS = 64  # Pictures up to this size are kept as PNG.
# What reading a file with wrong bytes in it raises.
DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OverflowError),
    *(KeyError, ValueError, TypeError, AttributeError),
)


@dataclasses.dataclass(frozen=True)
class Record:
    """One evaluation of a run, as it was kept.

    Attributes:
      step: the iteration after which it was made; 0 is the base model.
      prompts: set -> the prompt of each image.
      scores: set -> scorer -> float32 [n]; NaN where there is no score.
      distances: set -> prompt -> the mean distance of its pictures, see `diversity.py`.
      pictures: set -> index of an image -> the picture's file, PNG or JPEG.
      settings: "set/scorer" -> a name of all that these scores depend on beside the model, and set
        -> one of what the distances depend on; see `settings_of`. Earlier versions kept none.
    """

    step: int
    prompts: dict[str, list[str]]
    scores: dict[str, dict[str, np.ndarray]]
    distances: dict[str, dict[str, float]]
    pictures: dict[str, dict[int, bytes]]
    settings: dict[str, str] = dataclasses.field(default_factory=dict)


def settings_of(evaluation: Config, compared_by: str) -> dict[str, str]:
    """Returns `Record.settings` of an evaluation.

    Args:
      evaluation: `config.evaluation`.
      compared_by: what distances are between; see `diversity.make_features`.
    """
    evaluation, found = evaluation.to_dict(), {}
    for index, (name, chosen) in enumerate(evaluation["sets"].items()):
        # The noise is named by the seed and the set's number.
        drawn = {field: value for field, value in chosen.items() if field != "scorers"}
        drawn |= {"noise": evaluation["seed"] + index}
        found[name] = settings_digest([drawn, compared_by])
        for scorer in chosen["scorers"]:
            found[f"{name}/{scorer}"] = settings_digest([drawn, evaluation["scorers"][scorer]])
    return found


def comparable(one: Record, other: Record, key: str) -> bool:
    """Returns whether what two records have by a key of `Record.settings` came about alike.

    Where one of them does not say, it is taken to be so.
    """
    settings = {record.settings[key] for record in (one, other) if key in record.settings}
    return len(settings) < 2


def unscored(record: Record, name: str, scorer: str) -> int:
    """Returns how many pictures of a set have no score by a scorer of it."""
    return int((~np.isfinite(record.scores[name][scorer])).sum())


def shrink(images: np.ndarray) -> np.ndarray:
    """Returns pictures whose longer side has at most `MOST_PIXELS`.

    Args:
      images: [n, height, width, 3], uint8 or floats in [0, 1].

    Returns:
      uint8 [n, height, width, 3].
    """
    images = to_uint8(images)
    height, width = images.shape[1:3]
    factor = MOST_PIXELS / max(height, width)
    if factor >= 1:
        return images
    size = max(1, round(width * factor)), max(1, round(height * factor))
    resize = lambda image: np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    return np.stack([resize(image) for image in images])


def encode(image: np.ndarray) -> bytes:
    """Returns a picture as a file: PNG where it is small, and JPEG otherwise.

    Args:
      image: uint8 [height, width, 3].
    """
    buffer = io.BytesIO()
    if max(image.shape) <= LOSSLESS_PIXELS:
        Image.fromarray(image).save(buffer, "PNG")
    else:
        Image.fromarray(image).save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue()


def write_record(workdir: str, record: Record) -> None:
    """Writes an evaluation into a run's folder.

    What cannot be written, because a disk is full for example, ends no run: there is a warning.
    """
    described = {
        "step": record.step,
        "prompts": record.prompts,
        "scores": {
            name: {scorer: _plain(values) for scorer, values in scores.items()}
            for name, scores in record.scores.items()
        },
        "distances": record.distances,
        "settings": record.settings,
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(SCORES, json.dumps(described), zipfile.ZIP_DEFLATED)
        for name, pictures in record.pictures.items():
            for index, picture in pictures.items():
                # A set's name is the user's own.
                archive.writestr(f"{urllib.parse.quote(name, safe='')}/{index}", picture)
    path = _path(workdir, record.step)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, buffer.getvalue())
    except Exception as error:  # Buckets' libraries each raise their own kinds.
        logging.warning("The evaluation cannot be written to %s: %s", path, error)


def _plain(values: np.ndarray) -> list[float | None]:
    """Returns numbers as JSON has them: null in place of what is not finite."""
    return [float(value) if np.isfinite(value) else None for value in values]


def read_record(workdir: str, step: int) -> Record:
    """Reads an evaluation from a run's folder.

    Raises:
      FileNotFoundError: the run has no evaluation of that step.
      UserError: the file is damaged.
    """
    path = _path(workdir, step)
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            described = json.loads(archive.read(SCORES))
            pictures: dict[str, dict[int, bytes]] = {name: {} for name in described["scores"]}
            for entry in archive.namelist():
                name, _, index = entry.rpartition("/")
                if name:
                    pictures[urllib.parse.unquote(name)][int(index)] = archive.read(entry)
            scores = {
                name: {
                    scorer: np.array(values, np.float32)  # null becomes NaN.
                    for scorer, values in scores.items()
                }
                for name, scores in described["scores"].items()
            }
            prompts, distances = described["prompts"], described["distances"]
            settings = dict(described.get("settings", {}))
            return Record(int(described["step"]), prompts, scores, distances, pictures, settings)
    except DAMAGE as error:
        raise UserError(f"{path} is damaged ({error}): delete it.") from error


def recorded_steps(workdir: str) -> list[int]:
    """Returns the steps of the evaluations that a run has kept, ascending."""
    files = matching(epath.Path(workdir) / FOLDER, "*.zip")
    return sorted(int(file.stem) for file in files if file.stem.isdecimal())


def remove_records(workdir: str, start_step: int) -> None:
    """Removes the evaluations of a step and of later ones, which a run passes through again."""
    for step in recorded_steps(workdir):
        if step >= start_step:
            _path(workdir, step).unlink(missing_ok=True)


def kept_pictures(count: int, shown: Sequence[int]) -> np.ndarray:
    """Returns which of `count` pictures of a set are kept: all, or the shown ones among others.

    Args:
      count: how many pictures there are.
      shown: the indices of those that are shown while a run trains.

    Returns:
      Indices, ascending, `MOST_PICTURES` at most beside the shown ones.
    """
    chosen = min(count, MOST_PICTURES)
    return np.union1d(np.arange(chosen) * count // chosen, np.asarray(shown, int))


def _path(workdir: str, step: int) -> epath.Path:
    return epath.Path(workdir) / FOLDER / f"{step:08d}.zip"


def mean_by_prompt(prompts: Sequence[str], values: np.ndarray) -> Mapping[str, float]:
    """Returns each prompt's mean over its finite values. Prompts without any are left out.

    Args:
      prompts: the prompt of each image.
      values: [n], a number for each image.
    """
    by_prompt: dict[str, list[float]] = {}
    for prompt, value in zip(prompts, values, strict=True):
        if np.isfinite(value):
            by_prompt.setdefault(prompt, []).append(float(value))
    return {prompt: float(np.mean(numbers)) for prompt, numbers in by_prompt.items()}
