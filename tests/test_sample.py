"""What sample draws, by its flags."""

import json

import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from diffusionrl_jax import sample
from tests.processes import finish


@pytest.fixture
def read():
    """The prompts of a command line."""

    def prompts(*prompts, file=""):
        with flagsaver.flagsaver(prompts=list(prompts), prompt_file=file):
            flags.FLAGS.mark_as_parsed()
            return sample.read_all_prompts()

    return prompts


def test_a_prompt_file_is_read_as_a_tasks(read, tmp_path):
    rows = [{"caption": text} for text in ("a cat", "a dog", "a cat")]
    lines, array, table = (tmp_path / f"p.{ending}" for ending in ("jsonl", "json", "csv"))
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    array.write_text(json.dumps(rows))
    table.write_text('caption,n\na cat,1\n"a dog",2\na cat,3\n')
    for path in (lines, array, table):
        assert read(file=f"{path}?field=caption") == ["a cat", "a dog", "a cat"]
        with pytest.raises(ValueError, match="no (field|column) 'prompt', but .*caption"):
            read(file=str(path))
    (tmp_path / "p.txt").write_text("a cat\n\n a dog \n")
    assert read(file=f"{tmp_path}/p.txt") == ["a cat", "a dog"]


def test_prompts_of_the_command_line(read, tmp_path):
    assert read("a cat; a dog;", "a cat") == ["a cat", "a dog", "a cat"]
    with pytest.raises(ValueError, match="holds no prompt"):
        read(" ; ")
    for prompts, file in (((), ""), (("a",), f"{tmp_path}/p.txt")):
        with pytest.raises(ValueError, match="Give either --prompts"):
            read(*prompts, file=file)


@pytest.mark.slow
def test_sample_draws_a_checkpoint(start, finished, tmp_path):
    path = tmp_path / "grid.png"
    status, output = finish(
        start(
            "sample",
            f"--model={finished}@best",
            "--prompts=a cat",
            "--prompts=an apple next to a cake",
            "--images_per_prompt=3",
            f"--output={path}",
        )
    )
    assert status == 0, output
    # The captions, and three pictures of 32 pixels at three times their size.
    assert Image.open(path).size == (110 + 3 * 98 - 2, 2 * 98 - 2)
