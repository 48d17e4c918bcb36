"""Prompts and scorers are known by digests of their texts and files, as sha256sum has them."""

import hashlib

import pytest

from configs import common
from diffusionrl_jax.evaluation import identities


def test_prompts_by_their_texts_and_files(tmp_path):
    text = "a cat\na dog\n"
    (tmp_path / "prompts.txt").write_text(text)
    chosen = common.make_evaluation_set(str(tmp_path / "prompts.txt"), 3, ("size",))
    found = identities.identify_prompts(chosen, ["a dog", "a cat", "a dog"])
    digest = lambda text: hashlib.sha256(text.encode()).hexdigest()
    assert found == {
        "source": chosen.prompts,
        "images": 3,
        "group_size": chosen.group_size,
        "different": 2,
        "texts": digest("a dog\na cat\na dog"),
        "files": digest(f"{digest(text)}  prompts.txt\n"),
        "scorers": ["size"],
    }
    (tmp_path / "prompts.txt").unlink()
    with pytest.raises(FileNotFoundError, match="prompts.txt"):
        identities.identify_prompts(chosen, ["a dog"])
    made_up = common.make_evaluation_set("suite:object_requests?each=1", 1, ("size",))
    found = identities.identify_prompts(made_up, ["a photo of a cat"])
    assert found["files"] == "" and "no numbers of GenEval" in found["note"]


def test_scorers_by_their_files_or_their_source(tmp_path):
    folder = common.make_scorer("detection", "asset:emoji/detection")
    own = common.make_scorer("tests.evaluation.test_evaluator:GroupMean")
    both = identities.identify_scorer(common.make_weighted_sum(a=(folder, 1.0), b=(own, 2.0)))
    assert both["weights"] == {"a": 1.0, "b": 2.0}
    assert len(both["parts"]["a"]["files"]) == len(both["parts"]["b"]["files"]) == 64
    own.path = str(tmp_path)
    (tmp_path / "weights").write_text("1")
    first = identities.identify_scorer(own)["files"]
    (tmp_path / "weights").write_text("2")
    second = identities.identify_scorer(own)["files"]
    assert len({both["parts"]["b"]["files"], first, second}) == 3
    judge = identities.identify_scorer(
        common.make_scorer("requested_objects", "asset:emoji/detection")
    )
    assert judge["files"] == both["parts"]["a"]["files"]
    assert "in place of GenEval's" in judge["note"] and "note" not in both["parts"]["a"]
    server = common.make_scorer("host_reward", "http://localhost:1/score")
    assert identities.identify_scorer(server)["files"] == identities.UNKNOWN
    assert identities.identify_scorer(common.make_scorer("jpeg_size"))["files"] == ""
