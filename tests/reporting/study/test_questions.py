"""Who is asked what: shuffled, balanced, and the same at every start."""

import collections
import dataclasses

import numpy as np
import pytest
import scipy.stats

from diffusionrl_jax.reporting.study.questions import Question, ask
from diffusionrl_jax.reporting.study.records import SCRAMBLED, A, B, Pair
from tests.reporting.study.conftest import CHECKS, PAIRS, make_study


def pairs_of(questions):
    return [question for question in questions if not question.is_check]


def test_each_rater_sees_each_pair_once_in_an_own_order():
    study = make_study()
    orders = [[question.pair for question in pairs_of(ask(study, rater))] for rater in range(20)]
    assert all(sorted(order) == list(range(PAIRS)) for order in orders)
    assert len(set(map(tuple, orders))) == 20
    assert ask(study, 4) == ask(study, 4)
    assert ask(study, 4) != ask(dataclasses.replace(study, seed=4), 4)


def test_sides_are_balanced_for_a_rater_and_fair_for_a_pair():
    study, lefts = make_study(), np.zeros(PAIRS, int)
    for rater in range(400):
        questions = pairs_of(ask(study, rater))
        assert {frozenset((q.left, q.right)) for q in questions} == {frozenset((A, B))}
        assert sum(question.left == A for question in questions) == PAIRS // 2
        for question in questions:
            lefts[question.pair] += question.left == A
    for count in lefts:
        # Of twelve fair pairs one is below this in one seed of ten thousand.
        assert scipy.stats.binomtest(int(count), 400).pvalue > 1e-5


def test_checks_are_spread_and_of_known_answer():
    study, places = make_study(), collections.Counter()
    for rater in range(200):
        questions = ask(study, rater)
        checks = [(n, q) for n, q in enumerate(questions) if q.is_check]
        assert sorted(question.pair for _, question in checks) == sorted(CHECKS)
        assert 1 <= checks[0][0] <= PAIRS / 2 < checks[1][0]
        places.update(number for number, _ in checks)
        assert all(SCRAMBLED in (q.left, q.right) for _, q in checks)
        assert all(q.left in (A, B) or q.right in (A, B) for _, q in checks)
    # Each is after one of the pairs of its half.
    assert set(places) == {*range(1, PAIRS // 2 + 1), *range(PAIRS // 2 + 2, PAIRS + 2)}
    assert len(ask(dataclasses.replace(study, checks=()), 0)) == PAIRS


@pytest.mark.parametrize(("count", "raters"), [(3, 8), (5, 7), (12, 3), (50, 2)])
def test_a_part_of_the_pairs_is_shared_out_evenly(count, raters):
    seen = collections.Counter()
    for rater in range(raters):
        pairs = [question.pair for question in pairs_of(ask(make_study(), rater, count))]
        assert len(set(pairs)) == len(pairs) == min(count, PAIRS)
        seen.update(pairs)
    times = [seen[pair] for pair in range(PAIRS)]
    assert max(times) - min(times) <= 1


def test_one_pair_and_more_checks_than_pairs():
    pair = Pair("a cat", {}, {})
    study = dataclasses.replace(make_study(), pairs=(pair,), checks=(0,))
    assert [question.pair for question in ask(study, 0)] == [0, 0]
    assert not ask(study, 0)[0].is_check and ask(study, 0)[1].is_check


def test_what_is_chosen():
    question = Question(0, B, A)
    assert [question.chosen(choice) for choice in ("left", "right", "tie")] == [B, A, "tie"]
