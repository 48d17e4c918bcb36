"""Files of prompts: text, JSON, tables, and what is wrong with them."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffusionrl_jax.data.prompt_files import read_columns, read_prompts
from diffusionrl_jax.data.prompt_sources import open_prompts

TEXTS = ["an apple", "é cat", "犬", "  spaces ", "an apple", "line\nbreak", " ", "spaces"]
UNIQUE = ["an apple", "é cat", "犬", "spaces", "line\nbreak"]


def write(path, content):
    path.write_bytes(content)
    return str(path)


def write_jsonl(path, texts=TEXTS, field="prompt"):
    return write(path, "".join(json.dumps({field: t, "n": 1}) + "\n" for t in texts).encode())


def write_parquet(path, texts=TEXTS, field="prompt", kind=None, **options):
    table = pa.table({"seed": range(len(texts)), field: pa.array(texts, kind or pa.string())})
    pq.write_table(table, path, **options)
    return str(path)


def numbered(count):
    return [f"prompt {n}" for n in range(count)]


def listed(source):
    return [source.prompts[index] for index in range(len(source.prompts))]


def write_delimited(path, dialect, texts=TEXTS, field="prompt"):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        rows = csv.writer(file, dialect)
        rows.writerow([field, 'a "name", quoted'])
        rows.writerows((text, n) for n, text in enumerate(texts))
    return str(path)


def test_text_lines(tmp_path):
    path = write(tmp_path / "p.txt", "\ufeffan apple\r\n\n  é cat \n犬\né cat\n".encode())
    assert listed(open_prompts(path, 0)) == ["an apple", "é cat", "犬"]
    assert read_prompts(path) == ("an apple", "é cat", "犬", "é cat")


def test_json_lines(tmp_path):
    assert listed(open_prompts(write_jsonl(tmp_path / "p.jsonl"), 0)) == UNIQUE
    path = write_jsonl(tmp_path / "c.jsonl", field="caption")
    assert listed(open_prompts(f"{path}?field=caption", 0)) == UNIQUE


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_parquet_columns(kind, tmp_path):
    path = write_parquet(tmp_path / "p.parquet", kind=kind, row_group_size=3)
    assert listed(open_prompts(path, 0)) == UNIQUE
    path = write_parquet(tmp_path / "c.parquet", kind=kind, field="caption")
    assert listed(open_prompts(f"{path}?field=caption", 0)) == UNIQUE


@pytest.mark.parametrize(("ending", "dialect"), [("csv", "excel"), ("TSV", "excel-tab")])
def test_delimited_tables(ending, dialect, tmp_path):
    """As Python's csv writes them: quotes, commas and tabs within a field, in a .csv also lines."""
    lines = ["line\nbreak", "line\r\nbreak"] if ending == "csv" else []
    more = ['a sign that says "a, b"', '"', "a\tb", *lines]
    texts = [*TEXTS[:5], *TEXTS[6:], *more, ""]
    path = write_delimited(tmp_path / f"p.{ending}", dialect, texts)
    assert listed(open_prompts(path, 0)) == UNIQUE[:4] + more
    path = write_delimited(tmp_path / f"c.{ending}", dialect, texts, field="Prompt")
    assert listed(open_prompts(f"{path}?field=Prompt", 0)) == UNIQUE[:4] + more
    with pytest.raises(
        ValueError, match=r"no column 'prompt', but \['Prompt', .* as in \?field=Pr"
    ):
        open_prompts(path, 0)
    assert read_prompts(f"{path}?field=Prompt")[4] == "an apple"


def test_tabs_beside_quotes_that_enclose_no_field(tmp_path):
    """As in PartiPrompts.tsv."""
    lines = [
        "prompt\tkind",
        '"G I G" in letters\tArt',
        '"a ""b"", c"\tArt',
        '5" disks\tThing',
        '"\t',
    ]
    path = write(tmp_path / "p.tsv", "\r\n".join(lines).encode())
    texts = ('"G I G" in letters', 'a "b", c', '5" disks', '"')
    assert read_prompts(path) == texts
    kinds = zip(texts, ("Art", "Art", "Thing", ""), strict=True)
    assert read_columns(path, ["kind"]) == {prompt: {"kind": kind} for prompt, kind in kinds}


def test_a_quote_alone_takes_in_no_other_row_of_tabs(tmp_path):
    lines = ["prompt\tkind", '"G I G\tArt', "a\tArt", 'ends here"\tArt', '"b"\tArt', '\t"']
    path = write(tmp_path / "open.tsv", "\n".join(lines).encode())
    assert read_prompts(path) == ('"G I G', "a", 'ends here"', "b")
    path = write(tmp_path / "broken.tsv", b'prompt\tkind\n"a\nb"\tArt\n')
    with pytest.raises(ValueError, match="line 2 is of 1, but the first row of 2 fields"):
        read_prompts(path)


def test_other_columns_are_read_beside_the_prompts(tmp_path):
    rows = [
        {"text": f" {text} ", "kind": kind, "size": f"{kind} "}
        for text, kind in (("a", "x"), (" ", "w"), ("b", "y"), ("a", "z"))
    ]
    expected = {text: {"size": kind, "kind": kind} for text, kind in (("a", "x"), ("b", "y"))}
    columns = ["size", "kind"]
    path = write(tmp_path / "p.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert read_columns(f"{path}?field=text", columns) == expected
    path = str(tmp_path / "p.parquet")
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert read_columns(f"{path}?field=text&split=test&held_out=2", columns) == expected
    with pytest.raises(ValueError, match=r"no column 'frob', but \['text', 'kind', 'size'\]"):
        read_columns(f"{path}?field=text", ["kind", "frob"])
    path = write(tmp_path / "p.txt", b"a\n")
    with pytest.raises(ValueError, match="no column 'kind', since it is text"):
        read_columns(path, ["kind"])
    with pytest.raises(ValueError, match=r"blank.csv.* has no prompt: write some"):
        read_columns(write(tmp_path / "blank.csv", b"prompt,kind\n,x\n"), ["kind"])


@pytest.mark.parametrize("rows", [TEXTS, [{"prompt": text, "n": 1} for text in TEXTS]])
def test_json_arrays(rows, tmp_path):
    path = write(tmp_path / "p.json", b"\xef\xbb\xbf" + json.dumps(rows, indent=1).encode())
    assert listed(open_prompts(path, 0)) == UNIQUE
    assert read_prompts(path) == (*UNIQUE[:4], "an apple", "line\nbreak", "spaces")
    renamed = [{"caption": text} for text in TEXTS]
    path = write(tmp_path / "c.json", json.dumps(renamed).encode())
    assert listed(open_prompts(f"{path}?field=caption", 0)) == UNIQUE


@pytest.mark.parametrize(
    "name", ["p.xlsx", "p.ndjson", "p.csv.gz", "p.arrow", "p.yaml", "p.XML", "p.json5", "p.npy"]
)
def test_what_is_no_text_is_not_read_as_text(name, tmp_path):
    path = write(tmp_path / name, b"an apple\n")
    for read in (lambda name: open_prompts(name, 0), read_prompts):
        with pytest.raises(ValueError, match=f"{name} is not read: end the name in .txt.*parquet"):
            read(path)
    with pytest.raises(ValueError, match="is not read"):
        open_prompts(f"template:a {{noun}}?words={path}", 0)


@pytest.mark.parametrize("name", ["p", "p.TXT", "p.2024", "p.v1.5", "p.a-b", ".p", "p.jsonl.txt"])
def test_text_needs_no_ending(name, tmp_path):
    assert listed(open_prompts(write(tmp_path / name, b"an apple\n"), 0)) == ["an apple"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", b"", "has no prompt"),
        ("p.txt", b"\n \n\t\n", "has no prompt"),
        ("p.txt", b"fine\ncaf\xe9\n", "line 2: byte 4 is not UTF-8.*save it as UTF-8"),
        ("p.txt", b"a\none\rtwo\r", r"line 2 has a carriage return .*: save it with \\n line ends"),
        ("p.jsonl", b'{"prompt": "a"}\n\n{"prompt": "b"\n', "line 3 is not JSON"),
        ("p.jsonl", b'["a"]\n', r'line 1 is not a JSON object: write \{"prompt"'),
        (
            "p.jsonl",
            b'{"text": "a"}\n',
            r"line 1 has no field 'prompt', but \['text'\]: .*\?field=",
        ),
        ("p.jsonl", b'{"prompt": null}\n', "line 1: the field 'prompt' is NoneType, not a string"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}', "line 2: byte 13 is not UTF-8"),
        (
            "p.jsonl",
            b'{"prompt": "a"}\n{"prompt": "a \\ud800"}',
            r"line 2: the field 'prompt' has half of a character, \\ud800",
        ),
        ("p.jsonl", b"[" * 100_000, "line 1 is JSON nested too deeply: write one object a line"),
        ("p.json", b'{"prompt": ["a"]}', r'p.json is not a JSON array: write \["..."'),
        ("p.json", b'{"prompt": "a"}\n{"prompt": "b"}\n', "is not JSON .*name it .jsonl if"),
        ("p.json", b'["a", ["b"]]', "item 1 .the first is 0.: it is list, not a string"),
        ("p.json", b'["a", {"text": "b"}]', r"item 1 .* has no field 'prompt', but \['text'\]"),
        ("p.json", b'["a", {"prompt": 3}]', "item 1 .* the field 'prompt' is int, not a string"),
        ("p.json", b'["a \\ud800"]', r"item 0 .* it has half of a character, \\ud800"),
        ("p.json", b'["caf\xe9"]', "p.json: byte 6 is not UTF-8"),
        ("p.json", b"[" * 100_000, "is JSON nested too deeply"),
        ("p.json", b"", "is not JSON"),
        ("p.csv", b"", r"has no column 'prompt', but \[\]"),
        ("p.csv", b"prompt\n", "has no prompt"),
        ("p.csv", b"text\na\n", r"has no column 'prompt', but \['text'\]: name .*field=text"),
        ("p.csv", b"prompt;n\na;1\n", r"has no column 'prompt', but \['prompt;n'\]"),
        ("p.csv", b"prompt,prompt\na,b\n", "has 2 columns 'prompt': rename all but one"),
        ("p.csv", b"n,prompt\n1,a\n\n2,b,c\n", "line 4 is of 3, but the first row of 2 fields"),
        ("p.csv", b"n,prompt\n1\n", "line 2 is of 1, but the first row of 2 fields"),
        ("p.csv", b'prompt\n"a\nb\n', "line 3: unexpected end of data: mend the quotes"),
        ("p.csv", b'prompt\n"a" b\n', "line 2: .* expected after .*: mend the quotes"),
        ("p.csv", b"prompt\ncaf\xe9\n", "line 2: byte 4 is not UTF-8"),
        ("p.csv", b"prompt\n" + b"a" * 200_000, "line 2: field larger than field limit"),
        ("p.tsv", "prompt\na\n".encode("utf-16"), "line 1: byte 1 is not UTF-8"),
        ("p.parquet", b"PAR1 not really PAR1", "is not a whole parquet file .*copy it anew"),
        ("p.parquet", b"", "is not a whole parquet file"),
    ],
)
def test_broken_files_say_file_line_and_mend(tmp_path, name, content, words):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=words) as caught:
        open_prompts(path, seed=0)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_parquet_rows_and_columns(tmp_path):
    path = write_parquet(tmp_path / "p.parquet", ["a", "b", None], row_group_size=1)
    with pytest.raises(ValueError, match=r"p\.parquet, row 2 .* is null: leave the row out"):
        open_prompts(path, 0)
    with pytest.raises(ValueError, match=r"no column 'text', but \['seed', 'prompt'\]: name one"):
        open_prompts(f"{path}?field=text", 0)
    with pytest.raises(ValueError, match="the column 'seed' is int64, not strings"):
        open_prompts(f"{path}?field=seed", 0)
    # Arrow does not look whether what a file calls strings is UTF-8.
    broken = pa.array([b"fine", b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"prompt": broken}), path)
    with pytest.raises(ValueError, match=r"p\.parquet, row 1 .*: byte 4 is not UTF-8"):
        open_prompts(path, 0)
    content = (tmp_path / "p.parquet").read_bytes()
    with pytest.raises(ValueError, match="is not a whole parquet file"):
        open_prompts(write(tmp_path / "cut.parquet", content[:-7]), 0)
