"""The comparison of CLIP's rewards with their PyTorch originals."""

import pytest

# Odd margins too, which the libraries round differently, and the model's own size.
SIZES = ((64, 64), (64, 96), (96, 64), (53, 80), (32, 32), (25, 38), (41, 65), (20, 17))


@pytest.fixture
def assert_scores_match_pytorch(parity):
    """A function that compares a reward of random weights; `scale` is that of its cosines."""

    def compare(reward, scale=1):
        result = parity.compare(reward, parity.originals.tiny(reward), SIZES)
        assert result["spread"] > 1e-3 * scale
        assert result["difference"] < 1e-6 * scale
        # Pillow rounds twice to 1/255 of a channel's range, at most half a step each.
        assert result["difference_in_8_bits"] < 0.1 * result["spread"]

    return compare
