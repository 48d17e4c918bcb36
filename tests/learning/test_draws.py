"""Where windows of noise lie and who shares them, and at which steps groups part."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from diffusionrl_jax.learning import draws


def test_windows_are_drawn_once_for_a_group_and_lie_where_noise_is():
    firsts = draws.first_of_group((4, 1), 400)
    found = np.concatenate(
        [np.asarray(draws.windows(7, iteration, firsts, 5, 2)) for iteration in range(3)]
    )
    groups = found[0::2].reshape(3, 100, 4)
    np.testing.assert_array_equal(groups, np.repeat(groups[..., :1], 4, axis=2))
    assert not np.array_equal(groups[0], groups[1])
    # Of five steps two consecutive ones begin at one of four, each as probable as the others.
    for drawn in (groups[..., 0], found[1::2]):
        counts = np.bincount(drawn.ravel())
        assert len(counts) == 4
        assert scipy.stats.chisquare(counts).pvalue > 1e-4
    np.testing.assert_array_equal(draws.windows(7, 0, firsts, 2, 2), 0)


def test_parts_are_trained_on_evenly_spaced_steps():
    iterations, parts, steps = 300, 4, 10
    draw = jax.jit(jax.vmap(lambda step: draws.branch_steps(7, step, 2, parts, steps)))
    found = np.asarray(draw(jnp.arange(iterations)))
    assert found.shape == (iterations, 2, parts)
    # Of ten steps four are at distances of 2 and 3, from a first one that any may be.
    spaced = (found - found[..., :1]) % steps
    np.testing.assert_array_equal(spaced, np.broadcast_to([0, 2, 5, 7], found.shape))
    for task in range(2):
        counts = np.bincount(found[:, task].ravel(), minlength=steps)
        assert len(counts) == steps
        firsts = np.bincount(found[:, task, 0], minlength=steps)
        assert scipy.stats.chisquare(firsts).pvalue > 1e-4
    assert not np.array_equal(found[:, 0], found[:, 1])
    # As many parts as twice the steps have each step twice.
    every = np.sort(draws.branch_steps(7, 0, 1, 2 * steps, steps)[0])
    np.testing.assert_array_equal(every, np.repeat(np.arange(steps), 2))
