"""The command that converts a published pickle."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
import safetensors

from diffusionrl_jax import convert
from diffusionrl_jax.assets import resolve
from diffusionrl_jax.rewards import conversion
from tests.rewards.test_conversion import scores


@pytest.mark.slow
def test_hps_v2_by_the_command(hps_v2):
    folder, arguments = hps_v2
    flags = [f"--{name}={value}" for name, value in arguments.items()]
    command = [sys.executable, "-m", "diffusionrl_jax.convert", *flags]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "WARNING" not in done.stderr
    output = resolve(arguments["output"])
    assert not list(output.parent.glob("*.partial"))
    with safetensors.safe_open(output / "model.safetensors", "np") as file:
        assert file.get_tensor("logit_scale").dtype == np.float16
    np.testing.assert_array_equal(scores("hps_v2", output), scores("hps_v2", folder))
    with pytest.raises(FileExistsError, match="exists: name a folder that does not"):
        conversion.convert(**arguments)


def test_flags_are_the_functions_arguments():
    arguments = inspect.signature(conversion.convert).parameters
    assert convert.FLAGS.keys() == arguments.keys()
    for reward in conversion.CONFIGS:
        assert reward in convert.FLAGS["reward"]
