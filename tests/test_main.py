import functools
import pathlib
import shutil

import pytest

from diffusionrl_jax import main
from diffusionrl_jax.mistakes import UserError
from tests.processes import finish, launcher


@pytest.mark.parametrize(
    ("config_file", "workdir"),
    [
        ("configs/hps.py", "runs/hps"),
        ("configs/hps.py:emoji", "runs/hps-emoji"),
        ("/elsewhere/joint.v2.py:emoji", "runs/joint.v2-emoji"),
        ("configs/emoji.py:preference,fairness", "runs/emoji-preference-fairness"),
        ("my own.py:../a b/*\udce9:c", "runs/my own-..-a-b-c"),
    ],
)
def test_a_run_has_a_workdir_of_its_own(config_file, workdir):
    assert main.default_workdir(config_file) == workdir


def test_several_processes_need_a_workdir_that_all_see():
    choose = functools.partial(main.choose_workdir, config_file="configs/hps.py:emoji")
    assert choose(None, process_count=1) == "runs/hps-emoji"
    assert choose("gs://bucket/mine", process_count=4) == "gs://bucket/mine"
    with pytest.raises(UserError, match="The 4 processes .* --workdir=gs://BUCKET/hps-emoji, or"):
        choose(None, process_count=4)


@pytest.mark.slow
def test_without_a_workdir_the_same_line_goes_on(
    finished, config_file, make_config, compilation_cache, tmp_path
):
    config = config_file(make_config())
    workdir = tmp_path / "runs" / pathlib.Path(config).stem
    shutil.copytree(finished, workdir)
    with launcher(compilation_cache, devices=2, folder=tmp_path) as run:
        status, output = finish(run("-m", "diffusionrl_jax.main", f"--config={config}"))
    assert status == 0, output
    assert output.splitlines()[0].endswith(f"] Workdir: {workdir}")
    assert f"{workdir} is complete with 3 iterations" in output
    page = (workdir / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and page.count("<img ") > 16
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
