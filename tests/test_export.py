"""The program that exports a checkpoint."""

import numpy as np
import pytest

from diffusionrl_jax.models.folders import weights
from tests.processes import (
    finish,
)


@pytest.mark.slow
def test_export_writes_a_checkpoint_once(start, finished, tmp_path):
    folder = tmp_path / "exported"
    command = "export", f"--checkpoint={finished}@best", f"--output={folder}", "--dtype=float16"
    status, output = finish(start(*command))
    assert status == 0, output
    state = weights.read_safetensors(
        folder / "vae" / "diffusion_pytorch_model.safetensors", upcast=False
    )
    assert {tensor.dtype for tensor in state.values()} == {np.dtype(np.float16)}
    status, output = finish(start(*command))
    assert status == 1
    assert f"error: --output={folder} is not empty" in output
