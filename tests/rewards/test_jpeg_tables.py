"""The standard's tables, against those that Pillow writes."""

import pytest

from diffusionrl_jax.rewards import jpeg_tables


def test_quality_out_of_range_is_refused():
    with pytest.raises(ValueError, match="quality is 101"):
        jpeg_tables.quantisation(101)
