"""How programs end: what a person can mend in one line, a fault of ours with its traceback."""

import sys
import types

import jax
import pytest

from diffusionrl_jax.command_line import programs
from diffusionrl_jax.mistakes import UserError


@pytest.mark.parametrize(
    "error",
    [
        UserError("Give\n  another."),
        FileNotFoundError("Give another."),
        FloatingPointError("Give another."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_person_can_mend_is_one_line(error, capsys):
    with pytest.raises(SystemExit) as caught, programs.clear_errors():
        raise error
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: Give another.\n"


def test_an_interrupt_has_the_shells_status(capsys):
    import signal

    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as caught, programs.clear_errors():
            raise KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("error", [ValueError("ours"), KeyError("ours")])
def test_a_fault_of_ours_is_raised_as_it_is(error):
    with pytest.raises(type(error)) as caught, programs.clear_errors():
        raise error
    assert caught.value is error


class Ended(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("ours"), "error: this process cannot go on ('ours'). If it lost another process"),
        (TimeoutError("lost"), "error: this process cannot go on (lost)."),
        (UserError("Give another."), "error: Give another."),
    ],
)
def test_one_of_several_processes_leaves_at_once(error, words, monkeypatch, capsys):
    def leave(status):
        assert status == 1
        raise Ended

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(programs.processes.os, "_exit", leave)
    with pytest.raises(Ended), programs.clear_errors():
        raise error
    assert words in capsys.readouterr().err


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of commands, of which one needs a library that is not installed."""
    folder = tmp_path / "their_commands"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "works.py").write_text("main = 'the main function'\n")
    (folder / "lacks.py").write_text("import no_such_library\n")
    (folder / "broken.py").write_text("import their_commands.no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "their_commands"
    for name in [name for name in sys.modules if name.startswith("their_commands")]:
        del sys.modules[name]


def run_command(package, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    commands = ("works", "lacks", "broken")
    programs.run_command("study", commands, package, "the commands", extra="study")


def test_a_command_is_run_with_its_own_flags(package, monkeypatch):
    ran = []
    monkeypatch.setattr(programs, "run", lambda *arguments: ran.append(arguments))
    run_command(package, monkeypatch, "works", "--flag=1")
    assert ran == [("the main function", ["study works", "--flag=1"])]


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_without_a_command_the_commands_are_shown(package, monkeypatch, arguments):
    with pytest.raises(SystemExit, match="the commands"):
        run_command(package, monkeypatch, *arguments)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("work", "error: study has no command 'work': did you mean works?"),
        ("lacks", "needs the library no_such_library: install the extra 'study'"),
    ],
)
def test_a_command_that_cannot_be(package, monkeypatch, capsys, name, words):
    with pytest.raises(SystemExit):
        run_command(package, monkeypatch, name)
    assert words in capsys.readouterr().err


def test_a_module_of_ours_that_is_missing_is_a_fault_of_ours(package, monkeypatch):
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        run_command(package, monkeypatch, "broken")


@pytest.mark.parametrize(
    ("file", "is_quiet"),
    [("/lib/orbax/reading.py", True), ("/lib/asyncio/tasks.py", True), ("/lib/other/x.py", False)],
)
def test_readings_that_orbax_has_given_up_are_not_told(file, is_quiet, monkeypatch):
    told = []
    monkeypatch.setattr(sys, "__unraisablehook__", told.append)
    code = types.SimpleNamespace(co_filename=file)
    unraisable = types.SimpleNamespace(
        object=types.SimpleNamespace(cr_code=code), exc_traceback=None
    )
    programs.quiet_unraisablehook(unraisable)
    assert told == ([] if is_quiet else [unraisable])
