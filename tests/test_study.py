"""The program that asks people, from the pictures to the report."""

import importlib.util
import re
import shutil
import signal

import pytest
from etils import epath

from diffusionrl_jax import study
from diffusionrl_jax.reporting.study import votes
from tests.processes import finish
from tests.reporting.study.conftest import write_table
from tests.reporting.study.test_server import cast, in_database


@pytest.mark.slow
def test_a_study_from_beginning_to_end(start, finished, tmp_path):
    """The server is killed in the middle; the same command goes on with the same links."""
    folder, table = tmp_path / "study", write_table(tmp_path)
    flags = [f"--folder={folder}", "--a=base", f"--b={finished}@best", f"--prompts={table}"]
    more = ["--pairs=3", "--raters=2", "--checks=1", "--categories=Category", "--port=0"]

    def serve():
        """The process, its port, and the tokens."""
        process, links = start("study", "serve", *flags, *more), []
        for line in process.stdout:
            if line.startswith("rater "):
                links.append(line.split("http://127.0.0.1:")[1].strip().strip("/").split("/"))
            if len(links) == 2:
                return process, int(links[0][0]), [token for _, token in links]
        raise AssertionError(finish(process))

    process, port, tokens = serve()
    path = epath.Path(folder)
    raters = votes.read_raters(path)
    assert [rater.token for rater in raters] == tokens
    for number in range(4):
        assert cast(port, raters[0], number, "left") == (200, "left")
    process.send_signal(signal.SIGKILL)
    process.wait()
    pictures = {p: p.read_bytes() for p in folder.rglob("*.png")}
    assert len(pictures) == 7

    process, port, again = serve()
    assert again == tokens
    assert cast(port, raters[0], 3, "right") == (409, "left")
    for number in range(2):
        assert cast(port, raters[1], number, "tie") == (200, "tie")
    process.send_signal(signal.SIGTERM)
    status, output = finish(process)
    assert status == 0 and "Traceback" not in output and "study report" in output
    assert pictures == {p: p.read_bytes() for p in folder.rglob("*.png")}
    assert len(in_database(path)) == 6

    status, output = finish(start("study", "export", *flags, "--raters=1"))
    assert status == 0, output
    assert "data:image/png" in (folder / "pages" / "rater_3.html").read_text()
    status, output = finish(start("study", "report", f"--folder={folder}", "--needed=0"))
    assert status == 0 and f"People prefer {finished}@best to base in" in output, output
    assert "Category,Animals,preference,people" in (folder / "report.csv").read_text()
    assert "size" in (folder / "report.html").read_text(), "the run's own scorer head to head"

    status, output = finish(start("study", "serve", *flags, "--seed=1"))
    assert status == 1 and "holds a study of --seed=0: choose" in output.splitlines()[-1]
    shutil.rmtree(folder)


def test_every_command_has_a_module_and_a_line_of_the_help():
    for name in study.COMMANDS:
        module = f"diffusionrl_jax.reporting.study.commands.{name}"
        assert importlib.util.find_spec(module), name
    assert tuple(re.findall(r"^(\w+) {2,}\w", study.__doc__, re.MULTILINE)) == study.COMMANDS
