"""A run that never was, with what is known of it."""

import pytest

from diffusionrl_jax.reporting import reading
from tests.reporting.runs import write_run


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "foxes")


@pytest.fixture(scope="session")
def run(workdir):
    return reading.read_runs([workdir])[0]
