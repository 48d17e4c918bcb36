"""The seconds that each resource of a chip is busy, by hand."""

import pytest

from tests.costs.test_report import COST, result_of


def test_the_roofline():
    result = result_of(COST)
    # One second of operations, half of memory; 50 GB summed are sent twice, over 200 GB/s.
    assert result.phases[0].seconds(result.chip) == {
        "operations": pytest.approx(2),
        "memory": pytest.approx(1),
        "interconnect": pytest.approx(1),
    }
    assert result.summary() == {
        "fits": True,
        "memory": 5 * 2**30,
        "spare": 10.75 * 2**30,
        "fullest": "phase 0",
        "images_per_second_per_chip": pytest.approx(10),
    }
    assert "| phase 0 | 2 | 394 | 0.50 |" in result.markdown()
