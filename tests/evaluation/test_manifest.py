"""An evaluation is made again to the last digit, and what differs is named."""

import hashlib
import json
import shutil

import pytest

from configs import common
from diffusionrl_jax.evaluation import compare, manifest
from diffusionrl_jax.mistakes import UserError


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    """A model of its own, whose files are changed."""
    folder = tmp_path_factory.mktemp("models") / "own"
    shutil.copytree(tiny_model, folder)
    return folder


@pytest.fixture(scope="module")
def made(make_config, compilation_cache, model, tmp_path_factory):
    """An evaluation with a file of prompts and two scorers: its config and its folder."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "prompts.txt").write_text("a cat\na dog\nan apple\n")
    config = make_config(model=str(model))
    del config.evaluation.sets["people"]
    config.evaluation.sets.mine = common.make_evaluation_set(
        str(folder / "prompts.txt"), 8, ("size",)
    )
    compare.compare_models(config, [("same", str(model), "")], str(folder))
    return config, folder


def described(made):
    _, folder = made
    return json.loads((folder / manifest.FILE).read_text())


def test_it_is_made_again_to_the_last_digit(made, tmp_path):
    _, folder = made
    earlier = manifest.read(str(folder / manifest.FILE))
    text = compare.compare_models(earlier.config, earlier.checkpoints, str(tmp_path), earlier)
    for name in ("results.csv", "results.md", "manifest.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert manifest.read_summary(folder / manifest.FILE) in text
    assert "3 steps of DDIM" in text and "on 8 cpu devices" in text


def test_it_says_what_the_numbers_depend_on(made):
    content = described(made)
    csv = (made[1] / "results.csv").read_bytes()
    assert content["results"] == hashlib.sha256(csv).hexdigest()
    assert content["models"]["base"] == content["models"]["same"]
    assert content["made_with"]["devices"] == 8
    assert content["pictures"] == {"height": 32, "width": 32, "solver": "DDIM"}
    # Those of earlier versions lack what no evaluation depends on.
    assert content["sampling"]["microbatch"].keys() == {"sample", "decode", "score", "train"}
    mine = content["prompts"]["mine"]
    assert (mine["images"], mine["different"]) == (8, 3)
    digest = hashlib.sha256((made[1] / "prompts.txt").read_bytes()).hexdigest()
    line = f"{digest}  prompts.txt\n"
    assert mine["files"] == hashlib.sha256(line.encode()).hexdigest()


def refused(made, changed, named):
    """Whether an evaluation is refused, in the words given, before anything is drawn."""
    config, folder = made
    earlier = manifest.read(str(folder / manifest.FILE))
    changed = config if changed is None else changed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "load_policy", lambda *_: pytest.fail("it is drawn"))
        with pytest.raises(UserError, match=named):
            compare.compare_models(changed, earlier.checkpoints, str(folder), earlier)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("sampler.steps", 4, r"sampling.sampler.steps \(was 3, now 4\)"),
        ("sampler.guidance_scale", 2.0, r"guidance_scale \(was 1.0, now 2.0\)"),
        ("sampler.eta", 0.5, r"sampling.sampler.eta \(was 1.0, now 0.5\)"),
        ("dtype", "bfloat16", r"sampling.dtype \(was .float32., now .bfloat16.\)"),
        ("evaluation.seed", 3, "sampling.seed"),
        ("evaluation.sets.mine.images", 16, r"prompts.mine.images \(was 8, now 16\)"),
        ("evaluation.sets.pairs.prompts", "emoji:singles", "prompts.pairs.source"),
    ],
)
def test_a_changed_field_is_named(made, field, value, named):
    config = made[0].copy_and_resolve_references()
    config.update_from_flattened_dict({field: value})
    refused(made, config, named)


def test_a_changed_option_of_a_scorer_is_named(made):
    config = made[0].copy_and_resolve_references()
    config.evaluation.scorers.size = common.make_scorer("jpeg_size", quality=50)
    refused(made, config, r"scorers.size.options.quality \(was .absent., now 50\)")


def test_changed_files_are_named(made, model):
    for path in (made[1] / "prompts.txt", model / "vae" / "config.json"):
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        try:
            named = "prompts.mine.files" if path.suffix == ".txt" else "models.base.files.*same"
            refused(made, None, named)
        finally:
            path.write_bytes(before)


def test_other_versions_are_named_and_revisions_warned_of(made, caplog):
    content = described(made)
    (made[1] / "edited.json").write_text(
        json.dumps(content | {"made_with": content["made_with"] | {"jax": "0.1"}})
    )
    earlier = manifest.read(str(made[1] / "edited.json"))
    with pytest.raises(UserError, match=r"made_with.jax \(was \"0.1\""):
        manifest.check_same(earlier, content)
    earlier.content["made_with"] = content["made_with"] | {"git_revision": "abc"}
    manifest.check_same(earlier, content)
    assert "The revision was abc" in caplog.text
    with pytest.raises(UserError, match=r"the revision was abc"):
        manifest.check_results(earlier, content | {"results": "0"})


@pytest.mark.parametrize(
    ("content", "named"),
    [("{", "not valid JSON"), ('{"config": {}}', "lacks models")],
)
def test_what_is_no_manifest(content, named, tmp_path):
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(UserError, match=named):
        manifest.read(str(tmp_path / "m.json"))
