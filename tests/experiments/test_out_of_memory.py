"""What is said where a device's memory is full, by errors as XLA raises them."""

import jax
import pytest

from diffusionrl_jax.experiments import out_of_memory, planning
from diffusionrl_jax.mistakes import UserError

FULL = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12345 bytes.\nAllocations: ..."


@pytest.fixture
def resolved(make_config):
    return planning.resolve(make_config(**{"microbatch.train": 4, "microbatch.score": 1}))


def test_full_memory_is_told_with_the_plan_and_the_mend(resolved):
    config, plan = resolved
    with pytest.raises(UserError) as caught, out_of_memory.explained(config, plan):
        raise jax.errors.JaxRuntimeError(FULL)
    message = str(caught.value)
    assert str(plan) in message and "while trying to allocate 12345 bytes" in message
    assert "--config.microbatch.train=2" in message and "microbatch.score" not in message
    assert "\n" not in message and isinstance(caught.value.__cause__, jax.errors.JaxRuntimeError)


def test_other_errors_stay_as_they_are(resolved):
    for error in (jax.errors.JaxRuntimeError("INTERNAL: a fault"), ValueError(FULL)):
        with pytest.raises(type(error)) as caught, out_of_memory.explained(*resolved):
            raise error
        assert caught.value is error
