"""What a config names as a module's attribute, as Python itself imports it."""

import json

import pytest

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.rewards.imports import resolve


def test_the_attribute_is_pythons():
    assert resolve("json:loads") is json.loads
    assert resolve("json.decoder:JSONDecodeError") is json.JSONDecodeError


@pytest.mark.parametrize("name", ["json", "json:", ":loads", ""])
def test_a_name_of_another_form(name):
    with pytest.raises(UserError, match="is not of the form package.module:name"):
        resolve(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:x", "ModuleNotFoundError: No module named 'no_such_module'.*PYTHONPATH"),
        ("json:no_such_name", "AttributeError: .*has no attribute 'no_such_name'.*mend the name"),
        ("broken_reward:x", "ZeroDivisionError.*mend .*broken_reward.py, line 2"),
        ("leaving_reward:x", "SystemExit: 0.*mend .*leaving_reward.py, line 1"),
    ],
)
def test_what_cannot_be_imported(name, words, tmp_path, monkeypatch):
    (tmp_path / "broken_reward.py").write_text("x = 1\nx / 0\n")
    (tmp_path / "leaving_reward.py").write_text("raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"^'{name}' cannot be imported .{words}"):
        resolve(name)
