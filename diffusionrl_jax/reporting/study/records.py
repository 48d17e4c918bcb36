"""What a study's folder holds: which pairs of pictures are shown, and the pictures.

study.json is written last: a folder that has it is whole. The pictures are PNG files in folders
a, b and scrambled, each named by its pair's number.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from diffusionrl_jax.data.files import as_path, in_bucket, read_json, write_whole
from diffusionrl_jax.mistakes import UserError

A, B, SCRAMBLED = "a", "b", "scrambled"
FILE = "study.json"
USUAL_FOLDER = "runs/study"  # Git ignores it, and the links in it are secrets.


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two pictures of the same prompt and noise.

    Attributes:
      prompt: the prompt.
      groups: column of the prompts' file or suite -> the prompt's category in it.
      scores: scorer -> its scores of the pictures of a and of b.
    """

    prompt: str
    groups: Mapping[str, str]
    scores: Mapping[str, tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Study:
    """A study, as study.json has it.

    Attributes:
      identity: a random name, by which votes are told from those of another study.
      a, b: the two models, as the user named them.
      prompts: the source of the prompts, as the user named it.
      question: what people are asked.
      seed: of the noise, of the order of pairs and of their sides.
      sampler: how the pictures were drawn, field by field.
      pairs: all pairs.
      checks: the numbers of the pairs of which one picture is shown beside a scrambled one, too, to
        see whether a rater looks at all.
      steps: of those models that are runs, by `A` and `B`, the number of the step that was drawn.
        Earlier versions kept none.
    """

    identity: str
    a: str
    b: str
    prompts: str
    question: str
    seed: int
    sampler: Mapping[str, Any]
    pairs: tuple[Pair, ...]
    checks: tuple[int, ...]
    steps: Mapping[str, str] = dataclasses.field(default_factory=dict)


def study_folder(text: str) -> epath.Path:
    """Returns the folder of a study that a user has named.

    Raises:
      UserError: nothing can be there, or it is in a bucket, where no database can lie.
    """
    folder = as_path(text, "--folder")
    if in_bucket(folder):
        raise UserError(f"--folder={folder} must be on a disk, since the votes are a database.")
    return folder


def picture_path(folder: epath.Path, name: str, pair: int) -> epath.Path:
    """Returns the path of a picture.

    Args:
      folder: the study's folder.
      name: `A`, `B` or `SCRAMBLED`.
      pair: the number of its pair.
    """
    return folder / name / f"{pair:05}.png"


def is_study(folder: epath.Path) -> bool:
    """Returns whether a folder holds a whole study."""
    return (folder / FILE).exists()


def write_study(folder: epath.Path, study: Study) -> None:
    """Writes study.json."""
    text = json.dumps(dataclasses.asdict(study), indent=1, ensure_ascii=False)
    write_whole(folder / FILE, text.encode())


def read_study(folder: epath.Path) -> Study:
    """Reads study.json.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = folder / FILE
    if not path.exists():
        raise UserError(
            f"{folder} holds no study: draw one by `study serve` or `study export` with --a, --b "
            "and --prompts, or mend --folder."
        )
    values = read_json(path)
    try:
        pairs = tuple(
            Pair(
                str(pair["prompt"]),
                dict(pair["groups"]),
                {name: (float(a), float(b)) for name, (a, b) in pair["scores"].items()},
            )
            for pair in values["pairs"]
        )
        checks = tuple(map(int, values["checks"]))
        return Study(**(values | {"pairs": pairs, "checks": checks}))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not as it was written ({error!r}): copy it again.") from None
