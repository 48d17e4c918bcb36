"""Suites of prompts against counts by other tools of the published files."""

import collections

import pytest

from diffusionrl_jax.data import suites
from diffusionrl_jax.data.prompt_sources import make_prompts, prompt_categories, prompt_files
from diffusionrl_jax.mistakes import UserError

PARTI = (
    "Prompt\tCategory\tChallenge\tNote\n"
    'a "quoted" sign\tArtifacts\tBasic\tx\n'
    "bond\tAbstract\tBasic\tx\n"
    "a cat\tAnimals\tQuantity\tx\n"
)


@pytest.mark.parametrize(
    ("name", "count", "column", "counts"),
    [
        ("suite:t2i_compbench_colour", 300, None, {}),
        (
            "suite:t2i_compbench_spatial",
            300,
            "relation",
            # By `grep -c` of the file.
            {
                "near": 24,
                "next to": 24,
                "on side of": 37,
                "on the left of": 51,
                "on the right of": 56,
                "on the top of": 56,
                "on the bottom of": 52,
            },
        ),
        ("suite:occupations", 100, None, {}),
        ("suite:held_out_objects", 82 * 81 * 5, "relation", {"near": 82 * 81}),
        ("suite:object_requests?each=7&seed=2", 42, "task", {"counting": 7, "position": 7}),
    ],
)
def test_what_is_there(name, count, column, counts):
    categorised = prompt_categories(name)
    assert len(categorised) == count
    assert suites.columns_of(categorised) == ([column] if column else [])
    found = collections.Counter(columns.get(column) for columns in categorised.values())
    assert {category: found[category] for category in counts} == counts
    source = make_prompts(name, 3)
    drawn = [source[index] for index in range(min(count, 50))]
    assert len(set(drawn)) == len(drawn) and set(drawn) <= categorised.keys()


def test_a_table_has_its_columns(tmp_path):
    (tmp_path / "P&p.tsv").write_text(PARTI)
    name = f"suite:parti_prompts?file={tmp_path}/P&p.tsv"
    assert prompt_categories(name) == {
        'a "quoted" sign': {"Category": "Artifacts", "Challenge": "Basic"},
        "bond": {"Category": "Abstract", "Challenge": "Basic"},
        "a cat": {"Category": "Animals", "Challenge": "Quantity"},
    }
    assert prompt_categories(name, ["Challenge"])["a cat"] == {"Challenge": "Quantity"}
    assert prompt_categories(name, []) == dict.fromkeys(prompt_categories(name), {})
    with pytest.raises(UserError, match=r"no column 'Note', but \['Category', 'Challenge'\]"):
        prompt_categories(name, ["Category", "Note"])
    assert [path.name for path in prompt_files(name)] == ["P&p.tsv"]
    (tmp_path / "d.csv").write_text("Prompts,Category\nA red car.,Colors\n")
    drawbench = prompt_categories(f"suite:drawbench?file={tmp_path}/d.csv")
    assert drawbench == {"A red car.": {"Category": "Colors"}}


def test_files_are_styles(tmp_path):
    (tmp_path / "anime.json").write_text('["a cat", "a dog"]')
    (tmp_path / "photo.json").write_text('["a car"]')
    name = f"suite:hpd_v2?file={tmp_path}/*.json"
    styles = {"a cat": "anime", "a dog": "anime", "a car": "photo"}
    assert prompt_categories(name) == {prompt: {"style": name} for prompt, name in styles.items()}
    assert len(prompt_files(name)) == 2


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("suite:party_prompts", "There is no 'suite:party_prompts'.*parti_prompts"),
        ("suite:parti_prompts", "is not shipped: give its file, suite:parti_prompts.file=PATH"),
        ("suite:occupations?file=/x", "unknown"),
        ("suite:object_requests?each=900", "each=900 must be"),
    ],
)
def test_what_is_refused(name, named):
    with pytest.raises(UserError, match=named):
        make_prompts(name, 0)


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="There is no file /nowhere.tsv"):
        prompt_files("suite:parti_prompts?file=/nowhere.tsv")


def test_prompts_without_categories():
    assert prompt_categories("emoji:pairs") == prompt_categories("/no/file.txt") == {}
