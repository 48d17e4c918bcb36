"""Groups against plain loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusionrl_jax.algorithms.groups import best_of_group, from_group, of_group


@pytest.fixture
def scores():
    return np.random.default_rng(0).standard_normal(12).astype(np.float32)


def test_sums(scores):
    group = np.repeat([7, 2, 9], 4)
    expected = [scores[group == number].sum() for number in group]
    np.testing.assert_allclose(of_group(jnp.asarray(scores), jnp.asarray(group)), expected, 1e-5)


def test_the_best_is_a_valid_one(scores):
    valid = np.ones(12, bool)
    valid[scores.argmax()] = False
    valid[9:] = False
    found = best_of_group(jnp.asarray(scores), jnp.asarray(valid), 3)
    for place, number in enumerate(found):
        first = place // 3 * 3
        members = [member for member in range(first, first + 3) if valid[member]]
        assert first + number == max(members or [first], key=lambda member: scores[member])


def test_values_are_of_the_same_group():
    values = np.arange(24).reshape(12, 2)
    numbers = np.array([1, 1, 0, 2, 3, 3, 3, 0, 2, 2, 2, 1])
    found = from_group(jnp.asarray(values), jnp.asarray(numbers), 4)
    np.testing.assert_array_equal(found, values[np.arange(12) // 4 * 4 + numbers])
