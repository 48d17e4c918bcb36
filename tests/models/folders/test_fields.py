"""What fields of JSON may hold, on everything that JSON has."""

import json

import pytest

from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.models.folders import fields

# By a name, as JSON has it; NaN and infinities are Python's own addition.
VALUES = {
    text: json.loads(text)
    for text in (
        *("null", "true", "false", "0", "1", "-1", "1000", "1001", "1000001", "0.0", "0.5", "1.0"),
        *("-0.5", "1e300", "NaN", "Infinity", '""', '"x"', "[]", "[0]", "[1]", "[1, 2.0]", "{}"),
        *("[0.5, 0.25]", '["x"]', '["x", 1]', "[[1]]", "[true]", '{"a": 1}', "[0, 1]"),
    )
}
HELD = {
    "WHOLE": "1 1000 1001",
    "LAYERS": "1 1000",
    "WHOLE_OR_ZERO": "0 1 1000 1001 1000001",
    "NUMBER": "0 1 -1 1000 1001 1000001 0.0 0.5 1.0 -0.5 1e300",
    "ABOVE_ZERO": "1 1000 1001 1000001 0.5 1.0 1e300",
    "BETWEEN_ZERO_AND_ONE": "0.5",
    "BETWEEN_ZERO_AND_ONE_EACH": "[0.5,0.25]",
    "FLAG": "true false",
    "TEXT": '"" "x"',
    "WHOLES": "[1]",
    "WHOLE_OR_WHOLES": "1 1000 1001 [1]",
    "WHOLES_OR_NONE": "[] [0] [1] [0,1]",
    "TEXTS": '["x"]',
}


def test_every_kind_is_tried():
    kinds = {name for name, value in vars(fields).items() if isinstance(value, fields.Kind)}
    assert kinds == HELD.keys()


@pytest.mark.parametrize("name", HELD)
def test_a_kind_holds_its_values_and_no_others(name):
    kind = getattr(fields, name)
    found = {text.replace(" ", "") for text, value in VALUES.items() if kind.holds(value)}
    assert found == set(HELD[name].split())
    for text, value in VALUES.items():
        if kind.holds(value) or value is None:
            fields.check_fields({"field": value}, {"field": kind}, "the file")
        else:
            with pytest.raises(UserError, match="^the file: field is .*, and must be") as caught:
                fields.check_fields({"field": value}, {"field": kind}, "the file")
            assert str(caught.value).endswith(f"must be {kind.text}."), text


def test_nulls_and_fields_that_are_not_there_are_passed_over():
    fields.check_fields({"a": None, "other": "x"}, {"a": fields.WHOLE, "b": fields.TEXT}, "x")
    fields.check_choices({"a": None}, {"a": ("x",), "b": ("y",)}, "x")
    assert fields.without_nulls({"a": None, "b": 0, "c": ""}) == {"b": 0, "c": ""}


@pytest.mark.parametrize("value", ["z", 1, ["x"], {"x": 1}])
def test_a_choice_is_one_of_those_that_are_known(value):
    fields.check_choices({"a": "x"}, {"a": ("x", "y")}, "the file")
    with pytest.raises(UserError, match="^the file: a .* is not one of x, y.$"):
        fields.check_choices({"a": value}, {"a": ("x", "y")}, "the file")
