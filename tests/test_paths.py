"""The programs with paths that are hard to read, and with outputs that cannot be written."""

import os
import shlex

import pytest
from PIL import Image

from tests.processes import finish, launcher, steps_of

# Every character that means something to a shell, a pattern, an option or a list.
NAME = " *?[1]@best#%20;,=a&b'\"$HOME~日本\n-"


@pytest.fixture(scope="module")
def start(compilation_cache):
    """A function that starts a program on two devices."""
    with launcher(compilation_cache, devices=2) as run:
        yield lambda program, *arguments: run("-m", f"diffusionrl_jax.{program}", *arguments)


def run(process):
    status, output = finish(process)
    assert status == 0, output
    return output


@pytest.mark.slow
def test_every_program_with_a_name_that_is_hard_to_read(start, config_file, make_config, tmp_path):
    folder = tmp_path / NAME
    folder.mkdir()
    (folder / "p?.txt").write_text("an apple\na cat\n")
    config = make_config(
        iterations=1,
        **{
            "tasks.small.prompts": f"{folder}/p?.txt",
            "pretraining.weight": 1.0,
            "pretraining.pictures": "emoji",
        },
    )
    file = config_file(config)
    workdir = folder / "run"
    run(start("main", f"--config={file}", f"--workdir={workdir}"))
    assert steps_of(workdir) == [0, 1]
    run(start("main", f"--config={file}", f"--workdir={workdir}", "--config.iterations=2"))
    assert steps_of(workdir) == [0, 1, 2]
    grid = folder / "grid.png"
    run(start("sample", f"--model={workdir}", f"--prompt_file={folder}/p?.txt", f"--output={grid}"))
    assert Image.open(grid).height > 2 * 32
    checkpoint = f"one={workdir}@best"
    output = folder / "evaluation"
    run(
        start(
            "evaluate",
            f"--config={file}",
            f"--checkpoints={checkpoint}",
            f"--output={output}",
            "--images=4",
        )
    )
    assert sorted(os.listdir(output)) == [
        "comparison.png",
        "differences.csv",
        "manifest.json",
        "results.csv",
        "results.md",
    ]
    model = folder / "model"
    run(start("export", f"--checkpoint={workdir}@1", f"--output={model}"))
    assert not list(model.glob("*.partial"))
    said = run(
        start(
            "cache_latents",
            f"--config={file}",
            f"--config.model={model}",
            f"--output={folder}/latents",
        )
    )
    flag = shlex.split(said.partition("train with ")[2])[0]
    assert flag == f"--config.pretraining.pictures=latents:{folder}/latents"
    again = folder / "again"
    run(start("main", f"--config={file}", f"--workdir={again}", f"--config.model={model}", flag))
    assert steps_of(again) == [0, 1]


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        pytest.param(
            "main",
            ["--config={config}", "--workdir="],
            "--workdir is empty",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "sample",
            ["--model={model}", "--prompts=a", "--output=/none/x.png"],
            "no folder /none for --output",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "benchmark",
            ["train", "--config={config}", "--json=/none/x.json"],
            "no folder /none for --json",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_paths_are_refused_in_one_line_before_anything_is_computed(
    program, arguments, message, start, config_file, make_config, tiny_model
):
    fields = {"config": config_file(make_config()), "model": tiny_model}
    status, output = finish(start(program, *(text.format(**fields) for text in arguments)))
    assert status == 1
    assert "Traceback" not in output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert message in line
