"""The parity benchmark at a toy size: what it computes in PyTorch and in ours is the same."""

import json
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = {
    "unet": {
        "addition_time_embed_dim": 8,
        "attention_head_dim": [1, 1, 2],
        "block_out_channels": [32, 32, 64],
        "cross_attention_dim": 64,
        "layers_per_block": 1,
        "projection_class_embeddings_input_dim": 6 * 8 + 16,
        "sample_size": 8,
        "transformer_layers_per_block": [1, 1, 2],
    },
    "vae": {"block_out_channels": [32] * 4, "layers_per_block": 1},
}
SMALL_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "projection_dim": 16,
}


@pytest.fixture
def parity(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import parity

    return parity


@pytest.mark.parametrize(
    "part", [*(pytest.param(part, marks=pytest.mark.slow) for part in ("unet", "vae")), "text"]
)
def test_both_sides_compute_the_same(parity, tmp_path, part):
    configs = dict(parity.CONFIGS["sdxl"])
    for name in ("text_encoder", "text_encoder_2"):
        configs[name] = configs[name] | SMALL_TEXT
    for name, changes in SMALL.items():
        configs[name] = configs[name] | changes
    inputs = parity.make_inputs(configs, part, 8)
    for side, run in (("pytorch", parity.run_pytorch), ("ours", parity.run_ours)):
        outputs, seconds = parity.time_call(run(configs, part, inputs, tmp_path, 2), 1)
        np.savez(tmp_path / f"{side}.npz", **outputs)
        (tmp_path / f"{side}.json").write_text(json.dumps({"seconds": seconds, "peak": 1.0}))
    figures = parity.compare(tmp_path)
    assert figures["output"] > 0.1
    assert figures["difference"] <= 1e-5
    assert parity.disagreement(figures) is None
    assert figures["ours_seconds"] > 0 and figures["pytorch_peak"] == 1.0


@pytest.mark.parametrize(
    ("theirs", "ours", "words"),
    [
        ([0.5, 1.0], [0.5, 1.000009], None),
        ([0.5, 1.0], [0.500011, 1.0], "differs from PyTorch by 1.1e-05, more than 1.0e-05"),
        ([0.5, 4.0], [0.500035, 4.0], None),  # of a largest output of 4
        ([0.5, 4.0], [0.500045, 4.0], "by 4.5e-05, more than 4.0e-05"),
        ([0.0, 0.1], [0.0, 0.100009], None),  # of a largest output below 1
        ([0.5, 1.0], [float("nan"), 1.0], "by nan"),
    ],
)
def test_more_than_rounding_fails(parity, tmp_path, theirs, ours, words):
    for side, values in (("pytorch", theirs), ("ours", ours)):
        # What agrees, before and after what may not.
        arrays = {"mean": [0.0], "output": values, "rest": [0.0]}
        np.savez(tmp_path / f"{side}.npz", **{name: np.array(a) for name, a in arrays.items()})
        (tmp_path / f"{side}.json").write_text(json.dumps({"seconds": 1.0, "peak": 1.0}))
    message = parity.disagreement(parity.compare(tmp_path))
    assert message is None if words is None else words in message


def test_published_configs_are_supported(parity):
    """Every check that a real folder passes through, before any weight is read."""
    from diffusionrl_jax.models.stable_diffusion.build import build_stable_diffusion

    sizes = {}
    for name, configs in parity.CONFIGS.items():
        second = {"tokenizer_2": parity.EmptyTokenizer()} if name == "sdxl" else {}
        model = build_stable_diffusion(configs, parity.EmptyTokenizer(), **second)
        sizes[name] = model.image_shape
    assert sizes == {"sd15": (512, 512, 3), "sd2": (512, 512, 3), "sdxl": (1024, 1024, 3)}
