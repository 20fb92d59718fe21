"""
Problems with files that users of other programs have reported. Each must give the right result or an error message,
never a wrong result without a warning.
"""

import gzip
import hashlib
import itertools
import json
import lzma
import os
import re
from pathlib import Path

import datasets
import pandas
import pyarrow
import pytest

from sarcse.data.files import UnreadableDataError
from sarcse.data.sentences import SentenceStream, fingerprint, load_sentences, source_of_sentences
from sarcse.data.sts import load_pairs
from sarcse.options import DataArguments

from .conftest import PROJECT, flags, run_command, write


def sentences_of(path: Path, streaming: bool = False, text_column: str = "text") -> list[str]:
    """The sentences of one pass, in memory or as a stream."""
    arguments = DataArguments(train_file=str(path), streaming=streaming, text_column=text_column)
    return [row[text_column] for row in load_sentences(arguments)]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,source\nA cat sat.,web,\nA dog ran.,book,\n", "line 2: 3 cells, but the header has 2"),
        ("a.csv", "text\nA bird.\nhello, world\n", "line 3: 2 cells, but the header has 1"),
        ("a.csv", "text,source\nA cat sat.,web\nA dog ran.\n", "line 3: 1 cells, but the header has 2"),
        ("a.csv", 'text,source\n"Two\nlines.",web\nA cat, sat.,web\n', "line 4: 3 cells"),
        ("a.csv", 'text\n"An open quotation mark.\nA dog.\n', "line 3: not CSV"),
        ("a.csv", 'text\n"A "quoted" word."\n', "line 2: not CSV"),
        ("a.csv", "text,text\nA cat.,A dog.\n", "the column text occurs 2 times"),
        ("a.tsv", "text\tsource\nA cat sat.\tweb\t\n", "line 2: 3 cells, but the header has 2"),
        ("a.csv", "id,text\n1,A cat.\n2", "line 3: 1 cells, but the header has 2"),
        ("a.jsonl", '{"text": "A cat."}\n{"text": "A d', "line 2: not JSON"),
        ("a.jsonl", '{"text": "A cat."}\n["A dog."]\n', "line 2: not a JSON object"),
        ("a.jsonl", '{"text": "A cat."}\n{"text": 7}\n', "line 2: 'text' is 7, not text"),
        ("a.jsonl", '{"text": "A cat."}\n{"text": ["A"]}\n', r"line 2: 'text' is \['A'\], not text"),
    ],
)
def test_a_row_that_does_not_fit_is_named_and_never_trained_on(tmp_path, name, content, message, streaming):
    path = write(tmp_path / name, content)
    with pytest.raises(UnreadableDataError, match=f"{re.escape(str(path))}(, |: ){message}"):
        sentences_of(path, streaming)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sentence1,sentence2,score\nA dog, small,A cat,3\nc,d,1\n", "line 2: 4 cells, but the header has 3"),
        ("sentence1,sentence2,score\na,b,4.5,\nc,d,1,\n", "line 2: 4 cells, but the header has 3"),
    ],
)
def test_pairs_with_an_unquoted_comma_are_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"pairs.csv, {message}"):
        load_pairs(str(write(tmp_path / "pairs.csv", content)))


def test_a_table_that_seems_to_have_quoted_cells_is_read_as_it_is_with_a_warning(tmp_path, caplog):
    """pandas quotes a cell with quotation marks in it. In SentEval's files they are part of the text."""
    table = pandas.DataFrame(
        {"sentence1": ['He said "hello" to her.', "C"], "sentence2": ["A", "B"], "score": [3.0, 1.0]}
    )
    for name, separator, text in (
        ("p.tsv", "\t", '"He said ""hello"" to her."'),
        ("p.csv", ",", 'He said "hello" to her.'),
    ):
        caplog.clear()
        table.to_csv(tmp_path / name, sep=separator, index=False)
        assert load_pairs(str(tmp_path / name))["sentence1"][0] == text
        assert ("p.tsv, line 2: a cell looks quoted" in caplog.text) == (separator == "\t")
    senteval = write(tmp_path / "s.tsv", 'sentence1\tsentence2\tscore\n"A" and "b"\tHe said "c"\t3\nA\tB\t1\n')
    caplog.clear()
    assert load_pairs(str(senteval))["sentence1"][0] == '"A" and "b"' and not caplog.text


@pytest.mark.parametrize("streaming", [False, True])
def test_text_stays_text_whatever_the_first_rows_look_like(tmp_path, streaming):
    """Ten thousand rows are more than any reader inspects before it decides on a type."""
    numbers = [str(number) for number in range(10_001)]
    (text, ids) = [*numbers, "A sentence at last."], [*numbers, "A7"]
    write(tmp_path / "text.csv", "text\n" + "\n".join(text))
    assert sentences_of(tmp_path / "text.csv", streaming) == text
    write(tmp_path / "ids.csv", "id,text\n" + "\n".join(f"{a},Sentence {a}." for a in ids))
    assert sentences_of(tmp_path / "ids.csv", streaming) == [f"Sentence {a}." for a in ids]
    rows = [{"id": a, "text": f"Sentence {a}."} for a in range(10_001)]
    rows += [{"id": "A7", "text": "Sentence A7.", "note": {"late": True}}]
    write(tmp_path / "ids.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert sentences_of(tmp_path / "ids.jsonl", streaming) == [f"Sentence {a}." for a in ids]


@pytest.mark.parametrize("streaming", [False, True])
def test_null_is_a_blank_row_wherever_it_stands(tmp_path, streaming):
    write(tmp_path / "null.jsonl", '{"text": null}\n{"text": "A dog."}\n\n{"other": 1}\n{"text": "A cat."}\n')
    datasets.Dataset.from_dict({"text": [None, "A dog.", None, "A cat."]}).to_parquet(tmp_path / "null.parquet")
    for name in ("null.jsonl", "null.parquet"):
        assert sentences_of(tmp_path / name, streaming) == ["A dog.", "A cat."], name


@pytest.mark.parametrize("order", ["le", "be"])
@pytest.mark.parametrize("kind", ["txt", "csv", "tsv", "jsonl"])
def test_utf16_is_recognised(tmp_path, kind, order):
    """As spreadsheets and shells on Windows write it, with a mark at the beginning."""
    lines = {"txt": "A cat.", "jsonl": '{"text": "A cat."}'}.get(kind, "text\nA cat.")
    path = tmp_path / f"a.{kind}"
    path.write_bytes(f"\ufeff{lines}\n".encode(f"utf-16-{order}"))
    for read in (sentences_of, load_pairs) if kind != "txt" else (sentences_of,):
        with pytest.raises(ValueError, match=f"a.{kind}, line 1: not UTF-8 .but UTF-16: save it as UTF-8"):
            read(path)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_whose_name_is_not_utf8_is_read_if_a_pattern_matches_it(tmp_path, streaming):
    """The commands take no such name as an argument, but can print messages about the file."""
    file = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    with open(file, "wb") as stream:
        stream.write(b"A cat.\n")
    assert sentences_of(tmp_path / "c*.txt", streaming) == ["A cat."]
    with open(file, "ab") as stream:
        stream.write(b"\xff\n")
    options = {"train_file": "c*.txt", "streaming": streaming, "max_train_samples": None, "max_steps": 2}
    process = run_command(PROJECT / "train.py", *flags(tmp_path / "out", **options), cwd=tmp_path)
    assert process.returncode == 2 and "caf\\udce9.txt, line 2: not UTF-8" in process.stderr.splitlines()[-1]


def test_parquet_that_holds_no_text_is_named(tmp_path):
    datasets.Dataset.from_dict({"text": [1, 2]}).to_parquet(tmp_path / "ids.parquet")
    with pytest.raises(ValueError, match="ids.parquet, row 1: 'text' is 1, not text"):
        sentences_of(tmp_path / "ids.parquet")


def test_scores_are_numbers_whatever_the_first_ones_look_like(tmp_path):
    scores = [str(number % 6) for number in range(10_001)] + ["4.5", "", "nan"]
    rows = "".join(f"a{row},b{row},{score}\n" for row, score in enumerate(scores))
    pairs = load_pairs(str(write(tmp_path / "pairs.csv", f"sentence1,sentence2,score\n{rows}")))
    assert pairs["score"][:] == [float(score) for score in scores[:-2]]
    mixed = [3, 4.5, "2", None, 1]
    lines = [json.dumps({"sentence1": "a", "sentence2": "b", "score": score}) + "\n" for score in mixed]
    pairs = load_pairs(str(write(tmp_path / "pairs.jsonl", "".join(lines))))
    assert pairs["score"][:] == [3.0, 4.5, 2.0, 1.0]
    write(tmp_path / "bad.jsonl", lines[0] + lines[0].replace("3", "true"))
    with pytest.raises(ValueError, match="bad.jsonl, line 2: the score True is not a number"):
        load_pairs(str(tmp_path / "bad.jsonl"))
    write(tmp_path / "large.jsonl", lines[0] + lines[0].replace("3", "9" * 400))
    with pytest.raises(ValueError, match="large.jsonl, line 2: the score 999.* is not a number"):
        load_pairs(str(tmp_path / "large.jsonl"))
    write(tmp_path / "text.jsonl", lines[0] + lines[0].replace('"a"', "7"))
    with pytest.raises(ValueError, match="text.jsonl, line 2: 'sentence1' is 7, not text"):
        load_pairs(str(tmp_path / "text.jsonl"))


def test_subsets_that_begin_late_are_kept(tmp_path):
    rows = [{"sentence1": "a", "sentence2": "b", "score": score} for score in (1, 2)]
    rows[1]["subset"] = 2012
    write(tmp_path / "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert load_pairs(str(tmp_path / "pairs.jsonl"))["subset"][:] == ["", "2012"]
    rows[1]["subset"] = "\ud800"
    write(tmp_path / "lone.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UnreadableDataError, match="lone.jsonl, line 2: 'subset' is not valid Unicode"):
        load_pairs(str(tmp_path / "lone.jsonl"))


@pytest.mark.parametrize("name", ["data[1].txt", "data?.txt", "data*.txt", "[ab]/data[1].txt", "a::b.txt"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_that_exists_is_that_file_and_no_pattern(tmp_path, name, streaming):
    """Even beside files that it would match as a pattern. The record has the hash of what was read."""
    for other in ("data1.txt", "datax.txt", "a/data1.txt"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        write(tmp_path / other, "Of the other file.\n")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    path = write(tmp_path / name, "Of this file.\n")
    assert sentences_of(path, streaming) == ["Of this file."]
    if not streaming:
        arguments = DataArguments(train_file=str(path))
        assert source_of_sentences(arguments)["name"] == path.name
        assert fingerprint(load_sentences(arguments)) == hashlib.sha256(b"Of this file.\n").hexdigest()
    pairs = write(path.with_suffix(".tsv"), "sentence1\tsentence2\tscore\na\tb\t1\nc\td\t2\n")
    write(tmp_path / "data1.tsv", "sentence1\tsentence2\tscore\nx\ty\t1\nz\tz\t2\n")
    assert load_pairs(str(pairs))["sentence1"][:] == ["a", "c"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_name_that_no_file_has_is_a_pattern(tmp_path, streaming):
    for number in (1, 2, 3):
        write(tmp_path / f"data{number}.txt", f"Of file {number}.\n")
    (tmp_path / "data4.txt").mkdir()
    assert sentences_of(tmp_path / "data[13].txt", streaming) == ["Of file 1.", "Of file 3."]
    assert sentences_of(tmp_path / "data?.txt", streaming) == ["Of file 1.", "Of file 2.", "Of file 3."]


def test_a_stream_names_the_row_that_is_not_text_in_the_middle_of_a_run(tmp_path):
    rows = [json.dumps({"text": f"Sentence {number}."}) for number in range(100)]
    rows[60] = '{"text": 7}'
    path = write(tmp_path / "late.jsonl", "\n".join(rows))
    stream = load_sentences(DataArguments(train_file=str(path), streaming=True))
    with pytest.raises(UnreadableDataError, match="late.jsonl, line 61: 'text' is 7, not text"):
        list(itertools.islice(SentenceStream(str(path), stream, 1, 0, 1), 100))


# --- Compressed files ------------------------------------------------------------------------------------------------

COMPRESS = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "zst": lambda content: pyarrow.compress(content, "zstd", asbytes=True),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("ending", COMPRESS)
def test_a_compressed_file_that_was_cut_short_is_named_wherever_it_was_cut(tmp_path, ending, streaming):
    """In its header, its data or its checksum. Several members or frames, as `cat` joins them, are one file."""
    sentences = [f"Sentence {number}." for number in range(3_000)]
    first, second = (COMPRESS[ending]("\n".join(part).encode()) for part in ([*sentences, ""], ["The second part."]))
    path = tmp_path / f"a.txt.{ending}"
    path.write_bytes(first + second)
    assert sentences_of(path, streaming) == [*sentences, "The second part."]
    for length in (0, 1, 5, len(first) // 2, len(first) - 1, len(first) + 2, len(first + second) - 1):
        path.write_bytes((first + second)[:length])
        with pytest.raises(UnreadableDataError, match=f"a.txt.{ending}"):
            sentences_of(path, streaming)


def test_pairs_that_were_cut_short_are_named(tmp_path):
    pairs = COMPRESS["zst"](b"sentence1\tsentence2\tscore\n" + b"a\tb\t1\nc\td\t2\n" * 1_000)
    path = tmp_path / "pairs.tsv.zst"
    path.write_bytes(pairs)
    assert len(load_pairs(str(path))) == 2_000
    path.write_bytes(pairs[:-3])
    with pytest.raises(UnreadableDataError, match="pairs.tsv.zst could not be loaded: OSError: Truncated"):
        load_pairs(str(path))


# --- Patterns --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path) -> Path:
    """A corpus in folders, each file with its own name as its only sentence; hidden files and links are among them."""
    for name in (
        "a.txt",
        "sub/b.txt",
        "sub/deep/c.txt",
        ".hidden.txt",
        "sub/.hidden/d.txt",
        "__MACOSX/e.txt",
        "x[1]/f.txt",
        "x1/g.txt",
    ):
        (tmp_path / "corpus" / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "corpus" / name, f"{name}\n")
    (tmp_path / "corpus" / "sub" / "link.txt").symlink_to(tmp_path / "corpus" / "a.txt")
    (tmp_path / "corpus" / "sub" / "loop").symlink_to(tmp_path / "corpus")
    return tmp_path / "corpus"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "pattern", ["*.txt", "**/*.txt", "sub/**/*.txt", "*/*.txt", "**/deep/*.txt", "sub/.hidden/*.txt", "sub/loop/*.txt"]
)
def test_a_pattern_matches_what_it_matches_in_datasets(tree, pattern, streaming):
    """Hidden files and folders, and folders that are links, are only read if they are named."""
    expected = datasets.load_dataset("text", data_files=str(tree / pattern), split="train", streaming=True)
    assert sorted(sentences_of(tree / pattern, streaming)) == sorted(row["text"] for row in expected)


@pytest.mark.parametrize("streaming", [False, True])
def test_two_stars_go_to_any_depth(tree, streaming):
    found = sentences_of(tree / "**" / "*.txt", streaming)
    assert found == ["a.txt", "sub/b.txt", "sub/deep/c.txt", "a.txt", "x1/g.txt", "x[1]/f.txt"]
    with pytest.raises(ValueError, match="can only be an entire path component"):
        sentences_of(tree / "sub**" / "*.txt", streaming)


def test_pairs_are_found_by_a_pattern_at_any_depth(tree):
    for folder, score in (("sub", 1), ("sub/deep", 2)):
        write(tree / folder / "pairs.tsv", f"sentence1\tsentence2\tscore\na\tb\t{score}\n")
    assert load_pairs(str(tree / "**" / "pairs.tsv"))["score"][:] == [2.0, 1.0]


@pytest.mark.parametrize("streaming", [False, True])
def test_the_folder_that_a_pattern_begins_with_is_no_pattern_if_it_exists(tree, monkeypatch, streaming):
    assert sentences_of(tree / "x[1]" / "*.txt", streaming) == ["x[1]/f.txt"]
    monkeypatch.chdir(tree)
    assert sentences_of(Path("x[1]/*.txt"), streaming) == ["x[1]/f.txt"]
    assert sentences_of(Path("x[12]/*.txt"), streaming) == ["x1/g.txt"]
