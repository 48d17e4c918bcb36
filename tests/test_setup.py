"""What setup.cfg promises to install."""

import configparser
import importlib.metadata

from packaging.requirements import Requirement

from tests.processes import ROOT


def test_jax_has_the_builds_that_the_extras_name():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    offered = set(importlib.metadata.metadata("jax").get_all("Provides-Extra"))
    extras = setup["options.extras_require"]
    for name, build in {"tpu": "tpu", "cuda": "cuda12"}.items():
        requirement = Requirement(extras[name].strip())
        assert requirement.name == "jax" and requirement.extras == {build} <= offered
        assert importlib.metadata.version("jax") in requirement.specifier
