"""How an iteration is run where a config leaves it open."""

import pytest

from diffusionrl_jax.learning.execution import choose_execution


@pytest.mark.parametrize(
    ("execution", "expected"), [("auto", "split"), ("fused", "fused"), ("split", "split")]
)
def test_execution_is_split_on_the_cpu_unless_said(execution, expected):
    assert choose_execution(execution) == expected


def test_unknown_execution():
    with pytest.raises(ValueError, match="execution='both' must be one of"):
        choose_execution("both")
