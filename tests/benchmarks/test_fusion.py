"""What is timed apart computes what the fused step computes."""

from pathlib import Path

import jax
import numpy as np
import pytest

from diffusionrl_jax.experiments import experiment as experiments
from diffusionrl_jax.learning.execution import fused_program

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_both_sides_end_with_the_same_parameters(make_config, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import fusion

    experiment = experiments.build(make_config(**{"optimizer.epsilon": 1e-3}))
    first, ends = jax.device_get(experiment.policy.denoiser), []
    for make in (fused_program, fusion.separate_step):
        state = experiment.init_state()
        step = make(experiment.algorithm, state)
        for iteration in range(2):
            state, _ = step(state, experiment.frozen, experiment.batch(iteration))
        ends.append(jax.device_get(state.params))
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(ends[0]), strict=True)
    assert max(np.abs(before - after).max() for before, after in pairs) > 1e-4
    # Sums are taken in another order: a hundredth of what the parameters move by.
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-6), *ends)
