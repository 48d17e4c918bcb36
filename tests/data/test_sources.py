import pytest

from diffusionrl_jax.data.sources import find_files, parse
from tests.data.test_files import NAMES

KINDS = ("tfds", "template")


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("a.txt", "a.txt", {}),
        ("a.txt?", "a.txt", {}),
        ("a.jsonl?field=x&held_out=2", "a.jsonl", {"field": "x", "held_out": "2"}),
        ("tfds:a?field=b=c", "a", {"field": "b=c"}),
        ("gs://b/a?.txt?split=test", "gs://b/a?.txt", {"split": "test"}),
        ("template:who is {noun}?words=a?b.txt", "who is {noun}", {"words": "a?b.txt"}),
        ("other:a.txt", "other:a.txt", {}),
    ],
)
def test_names_and_options(text, name, options):
    source = parse(text, KINDS)
    assert (source.text, source.name, source.options) == (text, name, options)


@pytest.mark.parametrize("text", ["a?b", "a?=b", "a?b=", "?a=b", "a?b=1&b=2", "", "tfds:"])
def test_what_cannot_be_read(text):
    with pytest.raises(ValueError, match=r"write option=value|names nothing|twice"):
        parse(text, KINDS)


@pytest.mark.parametrize("name", [name for name in NAMES if len(name) < 200], ids=ascii)
def test_what_is_there_wins(name, tmp_path):
    folder = tmp_path / f"{name}?field=b"
    folder.mkdir()
    path = folder / f"{name}?split=x.txt"
    path.touch()
    for options, tail in (({}, ""), ({"held_out": "2"}, "?held_out=2")):
        source = parse(f"{path}{tail}", KINDS)
        assert (source.name, source.options) == (str(path), options)
        assert [str(found) for found in find_files(source.name)] == [str(path)]


@pytest.mark.parametrize("name", ["a&b", "a&b=c", "a?b&held_out=3", "a=b"])
def test_values_that_are_paths(name, tmp_path):
    path = tmp_path / name
    path.touch()
    source = parse(f"template:{{noun}}?words={path}&held_out=2", KINDS)
    assert source.options == {"words": str(path), "held_out": "2"}


def test_files_by_a_pattern_in_a_folder_with_any_name(tmp_path):
    folder = tmp_path / "a[1]*?"
    folder.mkdir()
    for name in ("p-1.txt", "p-0.txt", "p*.txt", "q[0].txt"):
        (folder / name).touch()
    names = lambda pattern: [path.name for path in find_files(f"{folder}/{pattern}")]
    assert names("p-*.txt") == ["p-0.txt", "p-1.txt"]
    assert names("p*.txt") == ["p*.txt"]  # There is a file of that name.
    assert names("q[*") == ["q[0].txt"]
    with pytest.raises(FileNotFoundError, match="No file matches .*none"):
        names("none*")
    with pytest.raises(ValueError, match="is a folder: name a file in it"):
        find_files(str(folder))
