import itertools

import pytest

from diffusionrl_jax.monitoring import progress


def test_progress_shows_rewards_rate_and_time_left(capsys):
    with progress.Progress(total_steps=10, start_step=4) as bar:
        bar.update({"image_reward": 0.25, "parity": -0.5}, images_per_second=64.25)
    shown = capsys.readouterr().err
    assert "image_reward 0.250, parity -0.500" in shown
    assert "64.2 images/s" in shown
    assert "5/10" in shown


def test_phases_add_up_and_start_anew():
    timer = progress.PhaseTimer(clock=itertools.count().__next__)
    for _ in range(3):
        with timer.phase("sample"):
            pass
    with pytest.raises(RuntimeError), timer.phase("update"):
        raise RuntimeError
    assert timer.collect() == {"seconds/sample": 3, "seconds/update": 1}
    assert timer.collect() == {}
