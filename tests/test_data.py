import gzip
import json
import lzma

import datasets
import numpy as np
import pytest
import torch
import zstandard
from transformers import AutoTokenizer

from data import DataArguments, load_sentences, token_counts, token_weights, tokenize

from .conftest import ENCODER


TEXT = "One sentence.\n\n   \nAnother, with é and 🙂.\nNA\n"
EXPECTED = ["One sentence.", "Another, with é and 🙂.", "NA"]


@pytest.mark.parametrize("kind", ["txt", "bom", "crlf", "gz", "xz", "zst", "jsonl", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_sentences(tmp_path, kind, caplog):
    """... without its blank lines, whose number is logged."""
    lines = TEXT.splitlines()
    table = datasets.Dataset.from_dict({"text": lines, "other": [1] * len(lines)})
    files = {
        "txt": lambda path: path.write_text(TEXT, encoding="utf-8"),
        "bom": lambda path: path.write_text(TEXT, encoding="utf-8-sig"),
        "crlf": lambda path: path.write_bytes(TEXT.replace("\n", "\r\n").encode()),
        "gz": lambda path: path.write_bytes(gzip.compress(TEXT.encode())),
        "xz": lambda path: path.write_bytes(lzma.compress(TEXT.encode())),
        "zst": lambda path: path.write_bytes(zstandard.compress(TEXT.encode())),
        "jsonl": lambda path: path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines)),
        "csv": table.to_csv,
        "tsv": lambda path: path.write_text("text\tother\n" + "".join(f"{line}\t1\n" for line in lines)),
        "parquet": table.to_parquet,
    }
    endings = {"bom": "txt", "crlf": "txt", "gz": "txt.gz", "xz": "txt.xz", "zst": "txt.zst"}
    path = tmp_path / f"sentences.{endings.get(kind, kind)}"
    files[kind](path)
    sentences = load_sentences(DataArguments(train_file=str(path)))
    assert sentences.column_names == ["text"]
    assert sentences["text"][:] == EXPECTED
    assert f"{path}: 2 of 5 lines are blank and skipped." in caplog.text


def test_a_changed_file_is_read_anew(tmp_path):
    path = tmp_path / "sentences.txt"
    path.write_text("old\n")
    assert load_sentences(DataArguments(train_file=str(path)))["text"][:] == ["old"]
    path.write_text("new\nlines\n")
    assert load_sentences(DataArguments(train_file=str(path)))["text"][:] == ["new", "lines"]


@pytest.mark.parametrize(
    ("name", "content", "fields", "message"),
    [
        ("none.txt", None, {}, "none.txt: no such file"),
        ("a.txt", b"", {}, "a.txt: the file is empty"),
        ("a.txt", b"\n \n", {}, "a.txt: no sentence in it"),
        ("a.txt", b"fine\nalso fine\nbad \xff\n", {}, "a.txt, line 3: not UTF-8"),
        ("a.txt.xz", lzma.compress(b"fine\nbad \xff\n"), {}, "a.txt.xz, line 2: not UTF-8"),
        ("a.csv", b"text\nfine\nbad \xff\n", {}, "a.csv, line 3: not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', {}, "a.jsonl, line 2: not UTF-8"),
        ("a.csv", b"title,body\na,b\n", {}, "a.csv: no column 'text'; --text_column must be one of title, body"),
        ("a.csv", b"text\n1\n2\n", {}, "column 'text' holds .*, not text"),
        ("a.txt", b"a\n", {"text_column": "body"}, "no column 'body'; --text_column must be one of text"),
        ("a.doc", b"a\n", {}, "a.doc: the name of a data file ends in .txt"),
        ("a.jsonl", b"no json\n", {}, "a.jsonl could not be loaded"),
        ("a.txt.gz", b"no gzip\n", {}, "a.txt.gz"),
        ("a.txt", b"a\n", {"dataset_name": "you/sentences"}, "either --train_file or --dataset_name"),
    ],
)
def test_bad_files_end_in_one_message_that_names_them(tmp_path, name, content, fields, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_sentences(DataArguments(train_file=str(tmp_path / name), **fields))


def test_an_unreachable_data_set_is_named():
    with pytest.raises(ValueError, match="you/sentences could not be loaded"):
        load_sentences(DataArguments(dataset_name="you/sentences"))


def test_tokens_are_those_of_the_tokenizer_and_cached(tmp_path):
    """Another run, with a fresh tokenizer and other unrelated fields, finds the same cache entry."""
    path = tmp_path / "sentences.txt"
    path.write_text("One sentence.\n" + "word " * 50 + "\n")
    fingerprints = set()
    for sts_dir in (None, "elsewhere"):
        tokenizer = AutoTokenizer.from_pretrained(ENCODER)
        arguments = DataArguments(train_file=str(path), max_seq_length=12, sts_dir=sts_dir)
        tokens = tokenize(load_sentences(arguments), tokenizer, arguments)
        fingerprints.add(tokens._fingerprint)
    assert len(fingerprints) == 1
    assert tokens.column_names == ["input_ids"]
    assert tokens["input_ids"][0] == tokenizer("One sentence.").input_ids
    assert len(tokens["input_ids"][1]) == 12 and tokens["input_ids"][1][-1] == tokenizer.sep_token_id


def test_token_weights_equal_a_hand_count():
    """Six content tokens: 5 three times, 6 twice, 7 once; 0 and 2 are special; 8 and 9 never occur."""
    tokens = datasets.Dataset.from_dict({"input_ids": [[0, 5, 6, 5, 2], [0, 7, 6, 5, 2], [0, 2]]})
    counts = token_counts(tokens, 10, special_token_ids=[0, 2])
    assert counts.tolist() == [0, 0, 0, 0, 0, 3, 2, 1, 0, 0]
    a = 0.25
    smooth = token_weights(counts, "smooth_inverse", a).tolist()
    assert smooth[5:8] == pytest.approx([a / (a + 3 / 6), a / (a + 2 / 6), a / (a + 1 / 6)])
    information = token_weights(counts, "self_information", a).tolist()
    assert information[5:9] == pytest.approx([np.log(2), np.log(3), np.log(6), np.log(6)])
    assert torch.equal(token_weights(counts, "uniform", a), torch.ones(10))


def test_frequent_tokens_weigh_less(tokenizer):
    arguments = DataArguments(train_file=str(ENCODER.parent / "sentences.txt"))
    tokens = tokenize(load_sentences(arguments), tokenizer, arguments)
    counts = token_counts(tokens, len(tokenizer), tokenizer.all_special_ids)
    assert counts.sum() == sum(len(ids) - 2 for ids in tokens["input_ids"])
    by_count = np.argsort(-counts, kind="stable")
    for weighting in ("smooth_inverse", "self_information"):
        weights = token_weights(counts, weighting, 1e-3).numpy()[by_count]
        assert (np.diff(weights) >= 0).all() and weights[0] < weights[1000]
