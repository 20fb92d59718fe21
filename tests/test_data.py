import gzip
import itertools
import json
import lzma
import shutil

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, DataCollatorWithPadding

from sarcse.data.files import UnreadableDataError
from sarcse.data.sentences import SentenceStream, first_part, load_sentences
from sarcse.data.tokens import (
    LengthGroupedSampler,
    token_counts,
    token_lengths,
    token_weights,
    tokenize,
    tokenize_batch,
)
from sarcse.options import DataArguments
from sarcse.training.corpus import tell_cut
from sarcse.training.running import own_message

from .conftest import ENCODER, PROJECT, run_python


TEXT = "One sentence.\n\n   \nAnother, with é and 🙂.\nNA\n"
EXPECTED = ["One sentence.", "Another, with é and 🙂.", "NA"]


@pytest.mark.parametrize("kind", ["txt", "bom", "crlf", "gz", "xz", "zst", "jsonl", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_sentences(tmp_path, kind, caplog):
    """Blank lines are dropped, and their number is logged."""
    lines = TEXT.splitlines()
    table = datasets.Dataset.from_dict({"text": lines, "other": [1] * len(lines)})
    files = {
        "txt": lambda path: path.write_text(TEXT, encoding="utf-8"),
        "bom": lambda path: path.write_text(TEXT, encoding="utf-8-sig"),
        "crlf": lambda path: path.write_bytes(TEXT.replace("\n", "\r\n").encode()),
        "gz": lambda path: path.write_bytes(gzip.compress(TEXT.encode())),
        "xz": lambda path: path.write_bytes(lzma.compress(TEXT.encode())),
        "zst": lambda path: path.write_bytes(pyarrow.compress(TEXT.encode(), "zstd", asbytes=True)),
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
    assert f"{path}: 2 of 5 texts are blank, and are skipped." in caplog.text


def test_a_changed_file_is_read_anew(tmp_path):
    path = tmp_path / "sentences.txt"
    path.write_text("old\n")
    assert load_sentences(DataArguments(train_file=str(path)))["text"][:] == ["old"]
    path.write_text("new\nlines\n")
    assert load_sentences(DataArguments(train_file=str(path)))["text"][:] == ["new", "lines"]


READ = f"""
import sys
import datasets
from transformers import AutoTokenizer
from sarcse.data import files
from sarcse.data.sentences import DataArguments, load_sentences, without_blank
from sarcse.data.tokens import tokenize

if "unread" in sys.argv:
    files.READERS[".txt"] = None  # whoever reads a file now, fails
own = load_sentences(DataArguments(train_file="sentences.txt"))
given = without_blank(datasets.load_dataset("text", data_files="sentences.txt", split="train"), "given")
tokens = tokenize(given, AutoTokenizer.from_pretrained({str(ENCODER)!r}), 16)
print(own["text"][:], given["text"][:], [len(ids) for ids in tokens["input_ids"]])
"""


def test_a_changed_reader_reads_anew_and_an_unchanged_one_from_the_cache(tmp_path):
    """The new code has the old names. It reads files, drops blank sentences and cuts them otherwise."""
    for name in ("sarcse", "configuration_sarcse.py", "modeling_sarcse.py"):
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        copy(PROJECT / name, tmp_path / name)
    (tmp_path / "sentences.txt").write_text("One sentence.\n-\n")

    def read(*options: str) -> str:
        process = run_python("-c", READ, *options, cwd=tmp_path, HF_DATASETS_CACHE=str(tmp_path / "cache"))
        assert process.returncode == 0, process.stderr
        return process.stdout.splitlines()[-1]

    first = read()
    assert first == "['One sentence.', '-'] ['One sentence.', '-'] [6, 3]"
    assert read("unread") == first
    for name, old, new in (
        ("files.py", "line.removesuffix", "line.upper().removesuffix"),
        ("sentences.py", "return bool(sentence and sentence.strip())", "return len(sentence) > 1"),
        ("tokens.py", 'max_length=max_seq_length)["input_ids"]}', 'max_length=4)["input_ids"]}'),
    ):
        code = (tmp_path / "sarcse" / "data" / name).read_text()
        assert old in code
        (tmp_path / "sarcse" / "data" / name).write_text(code.replace(old, new))
    assert read() == "['ONE SENTENCE.'] ['One sentence.'] [4]"


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
        ("a.csv", b"title,body\na,b\n", {}, "a.csv: no column text; it has title, body. --text_column"),
        ("a.txt", b"a\n", {"text_column": "body"}, "no column body; it has text. --text_column"),
        ("a.doc", b"a\n", {}, "a.doc: the name of a data file must end in .txt"),
        ("a.jsonl", b"no json\n", {}, "a.jsonl, line 1: not JSON"),
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
    """Another run, with a fresh tokenizer and different unrelated fields, finds the same cache entry."""
    path = tmp_path / "sentences.txt"
    path.write_text("One sentence.\n" + "word " * 50 + "\n")
    fingerprints = set()
    for sts_dir in (None, "elsewhere"):
        tokenizer = AutoTokenizer.from_pretrained(ENCODER)
        tokens = tokenize(load_sentences(DataArguments(train_file=str(path), sts_dir=sts_dir)), tokenizer, 12)
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
    with pytest.raises(ValueError, match="one of smooth_inverse, self_information, uniform, got 'inverse'"):
        token_weights(counts, "inverse", a)


def test_frequent_tokens_weigh_less(tokenizer):
    arguments = DataArguments(train_file=str(ENCODER.parent / "sentences.txt"))
    tokens = tokenize(load_sentences(arguments), tokenizer, 32)
    counts = token_counts(tokens, len(tokenizer), tokenizer.all_special_ids)
    assert counts.sum() == sum(len(ids) - 2 for ids in tokens["input_ids"])
    by_count = np.argsort(-counts, kind="stable")
    for weighting in ("smooth_inverse", "self_information"):
        weights = token_weights(counts, weighting, 1e-3).numpy()[by_count]
        assert (np.diff(weights) >= 0).all() and weights[0] < weights[1000]


# --- Streams ---------------------------------------------------------------------------------------------------------


def sharded_corpus(folder, files=4, lines=30) -> list[str]:
    """Writes this many files; returns their sentences, each of which names its file."""
    folder.mkdir()
    sentences = [[f"Sentence {line} of file {file}." for line in range(lines)] for file in range(files)]
    for file, content in enumerate(sentences):
        (folder / f"part-{file}.txt").write_text("\n".join(content) + "\n\n")  # and a blank line
    return [sentence for content in sentences for sentence in content]


def stream(path, process_index=0, num_processes=1) -> SentenceStream:
    arguments = DataArguments(train_file=str(path), streaming=True)
    return SentenceStream(str(path), load_sentences(arguments), 1, process_index, num_processes)


def one_pass(*arguments) -> list[str]:
    return [row["text"] for row in stream(*arguments).one_pass(0)]


LENGTHS = torch.randint(5, 33, (1000,), generator=torch.Generator().manual_seed(0))


def passes(seed=42, batch_size=8) -> list[list[int]]:
    """The orders of three passes."""
    number = itertools.count()
    sampler = LengthGroupedSampler(LENGTHS, batch_size, seed, epoch=lambda: next(number))
    return [list(sampler) for _ in range(3)]


def test_every_pass_grouped_by_length_has_each_sentence_once_in_an_order_of_its_own():
    """The seed and the number of the pass determine the order, so that a resumed run continues with the same one."""
    orders = passes()
    assert all(sorted(order) == list(range(1000)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert orders == passes()
    assert orders != passes(seed=43)
    assert list(LengthGroupedSampler(LENGTHS, 8, 42, epoch=lambda: 2)) == orders[2]


def test_batches_of_like_length_hold_little_padding_and_come_in_random_order():
    def longest(order):
        return LENGTHS[torch.as_tensor(order)].view(-1, 8).amax(dim=1)

    (grouped, *_) = passes()
    padded = [(8 * longest(order).sum() / LENGTHS.sum()).item() for order in (torch.arange(1000), grouped)]
    assert padded[0] > 1.5 and padded[1] < 1.1, "positions to compute, as a multiple of the tokens"
    rising = (longest(grouped)[1:] > longest(grouped)[:-1]).float().mean()
    assert 0.3 < rising < 0.7, "batches are in no order"


@pytest.mark.parametrize("batch_size", [64, 2000])
def test_what_fills_no_batch_is_not_the_longest(batch_size):
    (order, *_) = passes(batch_size=batch_size)
    assert sorted(order) == list(range(1000))
    rest = LENGTHS[torch.tensor(order[1000 // batch_size * batch_size :])].float()
    assert rest.mean() == pytest.approx(LENGTHS.float().mean().item(), abs=4)


def test_lengths_count_the_tokens(tmp_path, tokenizer):
    sentences = ["One.", "A longer sentence than that.", "x " * 50]
    tokens = tokenize(datasets.Dataset.from_dict({"text": sentences}), tokenizer, 16)
    assert token_lengths(tokens).tolist() == [len(ids) for ids in tokens["input_ids"]]


def words(*numbers):
    """One text for each number of tokens, special tokens included."""
    return datasets.Dataset.from_dict({"text": [" ".join(["a"] * (number - 2)) for number in numbers]})


def test_texts_that_are_cut_are_counted_with_the_length_that_would_do(tokenizer, caplog):
    texts = words(*[20] * 15, *[39] * 5)
    tell_cut(texts, tokenizer, 32, True)
    advice = "--max_seq_length 40 --decoder_length 40 would cut one in twenty"
    assert f"5 of 20 texts are cut at 32 tokens: {advice}." in caplog.text
    caplog.clear()
    tell_cut(texts, tokenizer, 39, True)
    tell_cut(words(*[20] * 19, 40), tokenizer, 20, True)
    assert caplog.text == "", "one in twenty is no news"


def test_texts_beyond_the_encoder_are_counted_too(tokenizer, caplog):
    tell_cut(words(*[20] * 15, *[200] * 5), tokenizer, 128, True)
    assert "5 of 20 texts are cut at 128 tokens: the encoder reads no more." in caplog.text


def test_a_sample_of_a_large_corpus_is_measured(tokenizer, caplog):
    tell_cut(words(*[10] * 20_001), tokenizer, 8, False)
    assert (
        "10,000 of 10,000 texts (a sample of all 20,001) are cut at 8 tokens: --max_seq_length 16 would" in caplog.text
    )


@pytest.mark.parametrize("num_processes", [1, 2, 3, 4])
def test_processes_share_a_stream_and_nothing_is_read_twice(tmp_path, num_processes):
    sentences = sharded_corpus(tmp_path / "corpus")
    shares = [one_pass(tmp_path / "corpus" / "*.txt", index, num_processes) for index in range(num_processes)]
    assert sorted(itertools.chain(*shares)) == sorted(sentences)
    files = [{sentence.split("file ")[1] for sentence in share} for share in shares]
    if 4 % num_processes == 0:
        assert sum(map(len, files)) == 4, "each process reads files of its own"


def test_every_pass_through_a_stream_has_each_sentence_once_in_an_order_of_its_own(tmp_path):
    sentences = sharded_corpus(tmp_path / "corpus")
    drawn = [row["text"] for row in itertools.islice(stream(tmp_path / "corpus" / "*.txt"), 2 * len(sentences))]
    first, second = drawn[: len(sentences)], drawn[len(sentences) :]
    assert sorted(first) == sorted(second) == sorted(sentences)
    assert first != second and first != sentences
    again = [row["text"] for row in itertools.islice(stream(tmp_path / "corpus" / "*.txt"), 2 * len(sentences))]
    assert again == drawn, "the seed decides, so that a resumed run can skip what it has seen"


def test_workers_that_load_a_stream_share_it_too(tmp_path):
    """Two workers for one file: one of them has nothing to do."""
    sentences = sharded_corpus(tmp_path / "corpus", files=1)
    loader = DataLoader(stream(tmp_path / "corpus" / "*.txt"), batch_size=10, num_workers=2)
    batches = list(itertools.islice(loader, 3))
    assert sorted(itertools.chain(*(batch["text"] for batch in batches))) == sorted(sentences)


def test_the_collator_of_a_stream_makes_the_batches_of_a_corpus_in_memory(tmp_path, tokenizer):
    sharded_corpus(tmp_path / "corpus", files=1)
    arguments = DataArguments(train_file=str(tmp_path / "corpus" / "part-0.txt"))
    sentences = load_sentences(arguments)
    expected = DataCollatorWithPadding(tokenizer)(list(tokenize(sentences, tokenizer, 6)))
    batch = tokenize_batch(list(sentences), tokenizer, max_seq_length=6)
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in batch)


def test_a_stream_that_turns_out_to_be_unreadable_says_where(tmp_path):
    sharded_corpus(tmp_path / "corpus", files=2)
    with (tmp_path / "corpus" / "part-1.txt").open("ab") as file:
        file.write(b"caf\xe9\n")
    with pytest.raises(UnreadableDataError, match=r"part-1.txt, line 32: not UTF-8"):
        list(itertools.islice(stream(tmp_path / "corpus" / "*.txt"), 100))


def test_a_worker_that_cannot_read_on_says_where_in_one_line(tmp_path):
    """torch puts the worker's traceback before the message."""
    sharded_corpus(tmp_path / "corpus", files=2)
    with (tmp_path / "corpus" / "part-1.txt").open("ab") as file:
        file.write(b"caf\xe9\n")
    (tmp_path / "0.jsonl").write_text('{"text": "A dog runs."}\n' * 20_000)
    (tmp_path / "1.jsonl").write_text('{"title": "A dog runs."}\n')
    for pattern, message in (
        ("corpus/*.txt", "part-1.txt, line 32: not UTF-8."),
        ("*.jsonl", "1.jsonl: no column text; it has title."),
    ):
        loader = DataLoader(stream(tmp_path / pattern), batch_size=None, num_workers=1)
        with pytest.raises(UnreadableDataError) as error:
            list(itertools.islice(loader, 100_000))
        assert "Traceback" in str(error.value)
        found = own_message(error.value)
        assert found.startswith(str(tmp_path)) and message.removesuffix(".") in found and "\n" not in found


@pytest.mark.parametrize("streaming", [False, True])
def test_a_pattern_without_a_file_and_an_empty_file_are_named(tmp_path, streaming):
    with pytest.raises(ValueError, match=r"none-\*.txt: no such file"):
        load_sentences(DataArguments(train_file=str(tmp_path / "none-*.txt"), streaming=streaming))
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match="empty.txt: the file is empty"):
        load_sentences(DataArguments(train_file=str(tmp_path / "*.txt"), streaming=streaming))


@pytest.mark.parametrize("name", ["blank.txt", "wrong.jsonl", "numbers.jsonl"])
def test_a_stream_without_sentences_is_refused(tmp_path, name):
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "wrong.jsonl").write_text('{"sentence": "A."}\n')
    (tmp_path / "numbers.jsonl").write_text('{"text": 3}\n')
    arguments = DataArguments(train_file=str(tmp_path / name), streaming=True)
    message = {
        "blank.txt": "no sentence",
        "wrong.jsonl": "no column text",
        "numbers.jsonl": "line 1: 'text' is 3, not text",
    }
    with pytest.raises(ValueError, match=message[name]):
        first_part(load_sentences(arguments), name, 100)


# --- Odd text --------------------------------------------------------------------------------------------------------


ODD_SENTENCES = {
    "of 100,000 characters": "word " * 20_000,
    "one word of 100,000 characters": "x" * 100_000,
    "control characters": "A \x01\x07 bell, an \x1b[31m escape and a \x00.",
    "right to left": "مرحبا بالعالم، هذه جملة. שלום עולם",
    "a right-to-left override": "\u202eoverridden\u202c",
    "emoji": "👩‍👩‍👧‍👦 🎉🎉 🏳️‍🌈",
    "combining marks alone": "\u0301\u0302",
    "separators that are no ends of lines": "one\u2028line\x85still",
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_odd_text_arrives_as_it_is(tmp_path, tokenizer, suffix, streaming):
    sentences = list(ODD_SENTENCES.values())
    path = tmp_path / f"odd{suffix}"
    data = datasets.Dataset.from_dict({"text": sentences})
    if suffix == ".txt":
        path.write_text("\n".join(sentences) + "\n", encoding="utf-8")
    else:
        data.to_json(path) if suffix == ".jsonl" else data.to_parquet(path)
    loaded = list(load_sentences(DataArguments(train_file=str(path), streaming=streaming)))
    assert [row["text"] for row in loaded] == sentences
    batch = tokenize_batch(loaded, tokenizer, max_seq_length=16)
    assert batch["input_ids"].shape == (len(sentences), 16)


@pytest.mark.parametrize("streaming", [False, True])
def test_lone_surrogates_are_named(tmp_path, streaming):
    """They are not valid UTF-8, neither as bytes nor as JSON escapes."""
    (tmp_path / "bytes.txt").write_bytes(b"A.\nB.\nlone \xed\xa0\xbd\n")
    (tmp_path / "escaped.jsonl").write_text('{"text": "A."}\n{"text": "lone \\ud83d"}\n')
    for name, message in (
        ("bytes.txt", "line 3: not UTF-8"),
        ("escaped.jsonl", "line 2: 'text' is not valid Unicode"),
    ):
        arguments = DataArguments(train_file=str(tmp_path / name), streaming=streaming)
        with pytest.raises(ValueError, match=f"{name}, {message}"):
            first_part(load_sentences(arguments), name, 100)
