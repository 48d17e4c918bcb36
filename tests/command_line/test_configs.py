"""A config file and its overrides, as absl and ml_collections read them."""

import ml_collections
import pytest
from absl import flags
from ml_collections import config_flags

from diffusionrl_jax.command_line.configs import check_config, config_arguments, read_config
from diffusionrl_jax.mistakes import UserError

FILE = """import ml_collections


def get_config(variant="plain"):
    return ml_collections.ConfigDict(
        {"steps": 3, "variant": variant, "flag": False, "group": {"rate": 0.5, "pair": [1, 2]}}
    )
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(FILE)
    return str(path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config={file}"],
        ["--config", "{file}"],
        ["-config={file}:small", "--config.steps=4"],
        ["--config={file}", "--config={file}:last"],
        ["--config={file}:last", "--config.group.rate", "2"],
        ["--config={file}", "--config.flag", "--noconfig.flag", "--config.group.pair[0]=5"],
        ["--config={file}", "--", "--config.steps=9"],
    ],
    ids=str,
)
def test_the_file_and_the_fields_are_those_that_absl_reads(arguments, file):
    arguments = [argument.format(file=file) for argument in arguments]
    named, overridden = config_arguments(arguments)
    values = flags.FlagValues()
    arguments_of_absl = ["program", *arguments]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments_of_absl)
    values(arguments_of_absl)
    assert named == values["config"].config_filename
    assert set(overridden) == set(values["config"].override_values)
    config = read_config(named)
    assert isinstance(config, ml_collections.ConfigDict)
    assert config.variant == (named.partition(":")[2] or "plain")
    check_config(arguments)


def test_without_a_config_nothing_is_refused():
    assert config_arguments(["--other=1", "--configs=x"]) == (None, [])
    check_config(["--other=1"])


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("stesp", "There is no field config.stesp: did you mean steps?"),
        ("group.rat", "There is no field config.group.rat: did you mean rate?"),
        ("steps.more", "There is no field config.steps.more: config.steps is no group of fields."),
        ("zzz[0]", "There is no field config.zzz: there are flag, group, steps, variant."),
    ],
)
def test_a_field_that_is_not_there(field, words, file):
    with pytest.raises(UserError) as caught:
        check_config([f"--config={file}", f"--config.{field}=1"])
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", "it has no function get_config"),
        ("def get_config():\n    return {}\n", "its get_config gives a dict, and not a ConfigDict"),
        ("def get_config():\n    return 1 / 0\n", r"ZeroDivisionError.*: mend {path}, line 2\.$"),
        ("def get_config(:\n", r"SyntaxError.*: mend {path}, line 1\.$"),
    ],
)
def test_a_file_that_gives_no_config(text, words, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(text)
    with pytest.raises(UserError, match=words.format(path=path)) as caught:
        read_config(str(path), "--configs")
    assert str(caught.value).startswith(f"--configs={path}")


def test_a_file_that_is_not_there():
    with pytest.raises(UserError, match="--config=/no.py:a: there is no file '/no.py'"):
        read_config("/no.py:a")
