"""Which models and prompts a study is of, and that its pictures are those that they draw."""

import csv
import types

import numpy as np
import pytest
from etils import epath
from PIL import Image

from diffusionrl_jax.data.prompt_sources import make_prompts
from diffusionrl_jax.data.prompts import prompt_batch
from diffusionrl_jax.diffusion.sampler import Sampler
from diffusionrl_jax.evaluation.statistics import OVERALL, wins
from diffusionrl_jax.mistakes import UserError
from diffusionrl_jax.monitoring.images import to_uint8
from diffusionrl_jax.reporting.study import drawing, findings, questions, records, report
from diffusionrl_jax.reporting.study.drawing import draw_study, parse_models, usual_config
from diffusionrl_jax.reporting.study.records import SCRAMBLED, A, B
from diffusionrl_jax.rewards.scorers import load_scorer
from diffusionrl_jax.runs import trained
from tests.reporting.study.conftest import choose, raters_of, write_table

MODEL = "asset:emoji/stable_diffusion"


def test_two_models_are_named(tmp_path):
    (tmp_path / "run").mkdir()
    names = {A: "base", B: f"{tmp_path}/run@best"}
    assert parse_models(names) == {A: ("", ""), B: (f"{tmp_path}/run", "best")}
    assert parse_models({A: f"{tmp_path}/run@12", B: MODEL})[A] == (f"{tmp_path}/run", "12")
    for same in ("base", MODEL, f"{tmp_path}/run@3"):
        with pytest.raises(UserError, match="are the same model"):
            parse_models({A: same, B: same})
    with pytest.raises(UserError, match="--b=.*the step 'frob'"):
        parse_models({A: "base", B: f"{tmp_path}/run@frob"})


@pytest.mark.slow
def test_a_study_is_of_numbered_steps(finished):
    """And two names of one step are not two models."""
    models = drawing.settle_models({A: "base", B: str(finished)})
    assert models == {A: ("", ""), B: (str(finished), "3")}
    for other in ("@last", "@3", "@03"):
        with pytest.raises(UserError, match="are the same model"):
            drawing.settle_models({A: str(finished), B: f"{finished}{other}"})


def test_the_config_of_models_without_a_run():
    config = usual_config({A: ("nobody/nothing", ""), B: (MODEL, "")})
    assert (config.model, config.sampler.guidance_scale) == (MODEL, 7.5)
    with pytest.raises(UserError, match="'base' is the model that a run began from, and asset:"):
        usual_config({A: ("", ""), B: (MODEL, "")})


PARTI = """Prompt\tCategory\tChallenge
a cat\tAnimals\tBasic
two dogs\tAnimals\tQuantity
a cake\tFood\tBasic
"""
# The prompts of each category of each column.
CATEGORIES = {
    ("Category", "Animals"): {"a cat", "two dogs"},
    ("Category", "Food"): {"a cake"},
    ("Challenge", "Basic"): {"a cat", "a cake"},
    ("Challenge", "Quantity"): {"two dogs"},
}


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """A function of prompts and columns: the study of four pairs, whose pictures are grey."""

    def evaluate(config, models, shown):
        (name,) = config.evaluation.sets
        chosen = config.evaluation.sets[name]
        prompts = prompt_batch(make_prompts(chosen.prompts, config.evaluation.seed), 0, shown, 1)
        images = np.full((shown, 4, 4, 3), 0.5, np.float32)
        scores = {name: {scorer: np.zeros(shown) for scorer in chosen.scorers}}
        evaluation = types.SimpleNamespace(scores=scores, images={name: images})
        evaluator = types.SimpleNamespace(prompts={name: prompts})
        return evaluator, {model: evaluation for model, *_ in models}

    monkeypatch.setattr(drawing, "evaluate_models", evaluate)
    monkeypatch.setattr(drawing, "settle_step", lambda path, step: step)

    def of(prompts, columns=None, **options):
        names, folder = {A: "models/earlier", B: MODEL}, epath.Path(tmp_path) / "drawn"
        folder.mkdir(exist_ok=True)
        config = usual_config(parse_models(names))
        options = {"question": "Which?", "scorers": [], "columns": columns} | options
        return folder, draw_study(folder, config, names, prompts, 4, **options)

    return of


def test_a_suite_brings_its_categories_to_the_report(draw, tmp_path):
    (tmp_path / "parti.tsv").write_text(PARTI)
    folder, study = draw(f"suite:parti_prompts?file={tmp_path}/parti.tsv", seed=7)
    votes = [
        choose(1, number, question, B if study.pairs[question.pair].prompt == "a cake" else A)
        for number, question in enumerate(questions.ask(records.read_study(folder), 0))
    ]
    report.write_report(folder, folder, records.read_study(folder), votes, [attentive(votes)])
    found = {
        (row["group"], row["category"]): (float(row["value"]), int(row["pairs"]))
        for row in csv.DictReader((folder / "report.csv").read_text().splitlines())
        if row["measure"] == findings.PREFERENCE and row["group"] != OVERALL
    }
    drawn = [pair.prompt for pair in study.pairs]
    inside = {key: [p for p in drawn if p in prompts] for key, prompts in CATEGORIES.items()}
    assert found == {
        key: (pytest.approx(prompts.count("a cake") / len(prompts)), len(prompts))
        for key, prompts in inside.items()
    }
    page = (folder / "report.html").read_text()
    assert all(f"{column}:</span> {category}" in page for column, category in CATEGORIES)


def attentive(votes):
    return findings.attend(raters_of(votes), votes, 0.0)[0]


def test_some_columns_of_a_suite_and_of_a_table(draw, tmp_path):
    (tmp_path / "parti.tsv").write_text(PARTI)
    table = f"{tmp_path}/parti.tsv?field=Prompt"
    suite = f"suite:parti_prompts?file={tmp_path}/parti.tsv"
    expected = {"a cat": "Basic", "two dogs": "Quantity", "a cake": "Basic"}
    for name in (table, suite):
        pairs = draw(name, ["Challenge"])[1].pairs
        assert {pair.prompt: pair.groups for pair in pairs} == {
            prompt: {"Challenge": challenge} for prompt, challenge in expected.items()
        }
    assert all(pair.groups == {} for pair in draw(table)[1].pairs)
    for name in (table, suite, "emoji:pairs"):
        with pytest.raises(UserError, match="has no columns? '?frob"):
            draw(name, ["frob"])


def test_what_is_said_of_a_suite_is_said_of_its_study(draw):
    folder, study = draw("suite:object_requests?each=2")
    assert [set(pair.groups) for pair in study.pairs] == [{"task"}] * 4
    report.write_report(folder, folder, study, [], [])
    assert "no numbers of GenEval" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_pictures_are_those_that_the_models_draw(finished, make_config, tmp_path_factory, tmp_path):
    config, names = make_config(), {A: "base", B: f"{finished}@2"}
    table = write_table(tmp_path_factory.mktemp("prompts"))
    study = draw_study(
        epath.Path(tmp_path),
        config.copy_and_resolve_references(),
        names,
        table,
        pairs=5,
        question="Which?",
        seed=7,
        checks=2,
        columns=["Category"],
    )
    assert records.read_study(epath.Path(tmp_path)) == study
    assert (study.a, study.b, study.steps) == (names[A], names[B], {B: "2"})
    prompts = [pair.prompt for pair in study.pairs]
    assert prompts == prompt_batch(make_prompts(table, 7), 0, 5, 1)
    kinds = {"a cat": "Animals", "an apple": "Food, fruit", "a dog": "Animals"}
    assert [pair.groups for pair in study.pairs] == [{"Category": kinds[p]} for p in prompts]

    policy = trained.load_trained(str(finished), config, "2")
    base = trained.load_trained(config.model, config)
    # Five and three more, as eight devices take them.
    eight = prompt_batch(make_prompts(table, 7), 0, 8, 1)
    for name, model in ((A, base), (B, policy)):
        expected = Sampler(model, config.sampler, 8)(model.params, eight, 7)[:5]
        for pair in range(5):
            found = Image.open(records.picture_path(epath.Path(tmp_path), name, pair))
            # Decoded in parts of another size, a value may be rounded the other way.
            assert np.abs(np.asarray(found, int) - to_uint8(expected[pair])).max() <= 1
        reward, params = load_scorer(config.evaluation.scorers.size, 1)
        # Sizes of JPEG files may differ by what one value in 255 changes of them.
        scores = [pair.scores["size"][name == B] for pair in study.pairs]
        np.testing.assert_allclose(scores, reward(params, expected, {}), rtol=0.02)
    assert not np.array_equal(*(drawn(tmp_path, name, 0) for name in (A, B)))
    assert study.checks == (0, 2)
    for pair in study.checks:
        pixels = sorted(map(tuple, drawn(tmp_path, SCRAMBLED, pair).reshape(-1, 3)))
        assert pixels in [
            sorted(map(tuple, drawn(tmp_path, n, pair).reshape(-1, 3))) for n in (A, B)
        ]
    scores = np.array([pair.scores["size"] for pair in study.pairs])
    expected = dict(enumerate(wins(scores[:, 1], scores[:, 0])))
    assert findings.scored(study, "size") == expected


def drawn(folder, name, pair):
    return np.asarray(Image.open(records.picture_path(epath.Path(folder), name, pair)))
