"""What somebody else's code raises, told by the line of it that Python's own traceback names."""

import json
import runpy
import sys

import pytest

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.mistakes.code import named_errors, without_exit

PLACE = ": mend {path}, line {line}.$"


def run(tmp_path, text):
    """Runs a file of these lines: its path."""
    path = tmp_path / "theirs.py"
    path.write_text(text)
    runpy.run_path(str(path))


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        ("x = 1\nx / 0\n", "ZeroDivisionError: division by zero", 2),
        ("import json\n\njson.loads('{')\n", "JSONDecodeError: Expecting property", 3),
        ("def inner():\n    {}['a']\n\n\ninner()\n", "KeyError: 'a'", 2),
        ("x = 1\ndef (:\n", "SyntaxError: invalid syntax", 2),
        ("import sys\nsys.exit(0)\n", "SystemExit: 0", 2),
    ],
)
def test_an_error_is_told_by_its_innermost_line_of_that_code(text, said, line, tmp_path):
    place = PLACE.format(path=tmp_path / "theirs.py", line=line)
    with pytest.raises(UserError, match=rf"^The file fails \({said}.*{place}") as caught:
        with named_errors("The file fails", "mend the file"):
            run(tmp_path, text)
    assert caught.value.__cause__ is not None


def test_a_library_is_not_to_blame_for_what_it_is_given():
    with pytest.raises(UserError, match=r"^It fails .*test_code.py, line \d+\.$"):
        with named_errors("It fails", "mend it"):
            json.loads("{")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("It says what is wrong.")])
def test_an_interrupt_and_what_says_what_is_wrong_are_left_alone(error):
    with pytest.raises(type(error)) as caught:
        with named_errors("It fails", "mend it"):
            raise error
    assert caught.value is error


def test_an_exit_is_an_error_and_nothing_else_is_touched(tmp_path):
    place = PLACE.format(path=tmp_path / "theirs.py", line=2)
    with pytest.raises(UserError, match=rf"^Theirs called sys.exit\(3\){place}"):
        with without_exit("Theirs"):
            run(tmp_path, "import sys\nsys.exit(3)\n")
    with pytest.raises(ZeroDivisionError), without_exit("Theirs"):
        run(tmp_path, "1 / 0")
    with without_exit("Theirs"):
        assert sys.version_info
