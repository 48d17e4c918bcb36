"""What tests of methods share."""

import jax
import pytest


@pytest.fixture
def hasty():
    """Programs that run for a moment are not worth optimising."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
