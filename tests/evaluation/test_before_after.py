"""Both denoisers draw the same prompts with the same noise, side by side in one file."""

import types

import jax
import numpy as np
from etils import epath
from PIL import Image

from diffusionrl_jax.evaluation.before_after import draw_before_after
from diffusionrl_jax.monitoring.images import SEPARATOR_COLOUR

SIDE = 32


def test_pairs_of_the_same_prompt_lie_in_one_file(tmp_path):
    """Every twentieth prompt, four of a set; 32 pixels are shown three times as large."""
    prompts = {"pairs": [f"pair {n}" for n in range(200)], "people": ["a judge"] * 8}
    asked = []

    def sampler(params, texts, seed):
        """Noise by the seed and the picture's place, brightened by what is learned."""
        asked.append(texts)
        noise = np.random.default_rng(seed).uniform(0, 0.5, (len(texts), SIDE, SIDE, 3))
        return np.float32(noise + params["denoiser"]["level"])

    evaluator = types.SimpleNamespace(
        policy=types.SimpleNamespace(with_denoiser=lambda denoiser: {"denoiser": denoiser}),
        prompts=prompts,
        sampler=sampler,
        config=types.SimpleNamespace(seed=7),
    )
    path = tmp_path / "before_after.png"
    draw_before_after(evaluator, {"level": 0.0}, {"level": 0.5}, epath.Path(path))
    expected = ["pair 0", "pair 20", "pair 40", "pair 60", "a judge"]
    assert asked == [expected, expected]
    grid = np.asarray(Image.open(path).convert("RGB")).astype(int)
    base = np.random.default_rng(7).uniform(0, 0.5, (5, SIDE, SIDE, 3))
    cell, scale = 2 * SIDE + 1, 3
    # Below the captions of the columns; the line that divides a pair is of the separators' colour.
    top = next(y for y in range(60) if (grid[y : y + 96, 96:99] == SEPARATOR_COLOUR).all())
    for place in range(4):
        left = place * (cell * scale + 2)
        pair = grid[top : top + SIDE * scale : scale, left : left + cell * scale : scale]
        np.testing.assert_allclose(pair[:, :SIDE], 255 * base[place], atol=0.51)
        np.testing.assert_allclose(pair[:, SIDE + 1 :], 255 * (base[place] + 0.5), atol=0.51)


def test_one_process_writes_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    evaluator = types.SimpleNamespace(
        policy=types.SimpleNamespace(with_denoiser=lambda denoiser: denoiser),
        prompts={"pairs": ["a cat"]},
        sampler=lambda params, texts, seed: np.zeros((1, 8, 8, 3), np.float32),
        config=types.SimpleNamespace(seed=0),
    )
    draw_before_after(evaluator, {}, {}, epath.Path(tmp_path / "before_after.png"))
    assert not list(tmp_path.iterdir())
