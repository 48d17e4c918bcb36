"""aesthetic against transformers' CLIP and torch's linear layers, with random weights."""


def test_scores_match_pytorch(assert_scores_match_pytorch):
    assert_scores_match_pytorch("aesthetic")
