"""Makes a rater's page: the same for a server, which has the pictures, and as a file with them."""

import base64
import functools
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from etils import epath
from PIL import Image

from diffusionrl_jax.reporting.study.questions import LEFT, RIGHT, Question
from diffusionrl_jax.reporting.study.records import Study, picture_path
from diffusionrl_jax.reporting.study.votes import Rater

TEMPLATES = pathlib.Path(__file__).parent / "templates"
# Pictures with longer sides are embedded as JPEG, of this quality and with all of the colour.
LARGEST_PNG = 128
JPEG_QUALITY = 95


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(name: str, **values: Any) -> str:
    """Fills a template of the folder templates.

    Args:
      name: the file's name.
      values: what it is filled with; texts are escaped.
    """
    return _templates().get_template(name).render(values)


def rater_page(
    study: Study,
    rater: Rater,
    questions: Sequence[Question],
    answers: Mapping[int, str],
    folder: epath.Path | None = None,
) -> str:
    """Returns the HTML page on which a rater answers. Nothing in it tells which model is which.

    Args:
      study: the study.
      rater: the rater.
      questions: the rater's questions.
      answers: number of a question -> its choice, of those that are answered already.
      folder: None for a page of a server, to which votes are sent one by one. Else the study's
        folder, whose pictures are put into the page; the votes are kept by the browser and leave it
        as a file.
    """
    picture = lambda number, side, name: (
        f"{number}/{side}"
        if folder is None
        else data_address(picture_path(folder, name, questions[number].pair))
    )
    asked = [
        {
            "prompt": study.pairs[question.pair].prompt,
            LEFT: picture(number, LEFT, question.left),
            RIGHT: picture(number, RIGHT, question.right),
        }
        for number, question in enumerate(questions)
    ]
    state = {
        "served": folder is None,
        "study": study.identity,
        "rater": rater.token,
        "number": rater.number,
        "questions": asked,
        "answers": dict(answers),
    }
    return render("rater.html", question=study.question, state=state)


def data_address(path: epath.Path) -> str:
    """Returns a picture as an address that holds all of it."""
    content, kind = path.read_bytes(), "png"
    image = Image.open(io.BytesIO(content))
    if max(image.size) > LARGEST_PNG:
        buffer, kind = io.BytesIO(), "jpeg"
        image.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        content = buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
