import shutil

import datasets
import pytest

from sarcse.data.sts import load_pairs, load_sts, load_tasks, loaded_as
from sarcse.options import STS_TASKS

from .conftest import DEMO, PROJECT


YEARS = ("STS12", "STS13", "STS14", "STS15", "STS16")


def write_year(root, task, subsets, prefix="STS"):
    """A year's folder; `subsets` maps each name to the contents of the input and the gold file, as bytes."""
    folder = root / STS_TASKS[task].folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, (lines, golds) in subsets.items():
        (folder / f"{prefix}.input.{name}.txt").write_bytes(lines)
        (folder / f"{prefix}.gs.{name}.txt").write_bytes(golds)
    return folder


@pytest.fixture
def year13(tmp_path):
    """All of 2013 as written by SentEval's script: three subsets, tokenised."""
    subsets = {
        "FNWN": (b'a cat .\ta dog .\none " two\tthree\nx\ty\n', b"1.5\n\n4\n"),
        "OnWN": (b"e\tf\ng\th\n", b"0\n5.0\n"),
        "headlines": (b"i\tj\n", b"2\n"),
    }
    return write_year(tmp_path, "STS13", subsets)


def test_subsets_are_concatenated_and_unscored_pairs_dropped(year13, tmp_path):
    assert load_sts("STS13", str(tmp_path)).to_dict() == {
        "sentence1": ["a cat .", "x", "i", "e", "g"],
        "sentence2": ["a dog .", "y", "j", "f", "h"],
        "score": [1.5, 4.0, 2.0, 0.0, 5.0],
        "subset": ["FNWN", "FNWN", "headlines", "OnWN", "OnWN"],
    }


def test_windows_files_with_byte_order_marks_read_the_same(year13, tmp_path):
    expected = load_sts("STS13", str(tmp_path)).to_dict()
    for file in year13.iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert load_sts("STS13", str(tmp_path)).to_dict() == expected
    for file in year13.iterdir():
        file.write_bytes(file.read_bytes().removesuffix(b"\r\n"))
    assert load_sts("STS13", str(tmp_path)).to_dict() == expected, "without a line end at the end of the file"


def test_raw_files_keep_their_case_and_lose_only_what_senteval_loses(year13, tmp_path):
    """SentEval splits at whitespace and joins with spaces. Further columns (sources in 2016) are not sentences."""
    (year13 / "STS.input.headlines.txt").write_bytes("It's  5\u00a0PM. \tÉcole  \tsource\tlicence\r\n".encode())
    pair = load_sts("STS13", str(tmp_path))[2]
    assert (pair["sentence1"], pair["sentence2"]) == ("It's 5 PM.", "École")


def test_other_files_of_the_archives_are_no_subsets(year13, tmp_path):
    """2012 includes STS.gs.ALL.txt, and 2013 the gold scores of SMT, whose sentences are not freely available."""
    expected = load_sts("STS13", str(tmp_path)).to_dict()
    (year13 / "STS.gs.ALL.txt").write_text("1\n" * 5)
    (year13 / "STS.gs.SMT.txt").write_text("1\n" * 5)
    (year13 / "00-readme.txt").write_text("...")
    assert load_sts("STS13", str(tmp_path)).to_dict() == expected


def test_2016_is_read_under_its_archives_names_too(tmp_path):
    subsets = {name: (b"a\tb\tx\ty\nc\td\tx\ty\ne\tf\n", b"\n3\n1\n") for name in STS_TASKS["STS16"].subsets}
    write_year(tmp_path, "STS16", subsets, prefix="STS2016")
    assert load_sts("STS16", str(tmp_path))["sentence1"][:] == ["c", "e"] * 5


def test_missing_subsets_are_named_in_a_warning(year13, tmp_path, caplog):
    for name in ("FNWN", "headlines"):
        (year13 / f"STS.input.{name}.txt").unlink()
        (year13 / f"STS.gs.{name}.txt").unlink()
    assert set(load_sts("STS13", str(tmp_path))["subset"]) == {"OnWN"}
    assert f"{year13} lacks the subsets FNWN, headlines." in caplog.text
    assert "STS13 test has 2 scored pairs here, but the published task has 1500" in caplog.text


def test_duplicated_pairs_stay(year13, tmp_path):
    """They count twice in the published scores too; only their embeddings are shared."""
    (year13 / "STS.input.headlines.txt").write_bytes(b"i\tj\ni\tj\n")
    (year13 / "STS.gs.headlines.txt").write_bytes(b"2\n2\n")
    assert load_sts("STS13", str(tmp_path))["sentence1"][:].count("i") == 2


def test_benchmark_and_sick_files_are_read_by_their_columns(tmp_path):
    benchmark, sick = tmp_path / "STS" / "STSBenchmark", tmp_path / "SICK"
    benchmark.mkdir(parents=True)
    sick.mkdir()
    rows = [f'main-{i}\tfile\t2012test\t{i:04}\t{i}.0\tsentence {i}\tother "{i}\tsource' for i in range(6)]
    (benchmark / "sts-dev.csv").write_text("\n".join(rows) + "\n")
    pair = {"subset": "main-3", "score": 3.0, "sentence1": "sentence 3", "sentence2": 'other "3'}
    assert load_sts("STSB", str(tmp_path), split="dev")[3] == pair
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\r\n"
    (sick / "SICK_test_annotated.txt").write_bytes((header + "1\tA\tB\t4.5\tN\r\n2\tC\tD\t1\tN\r\n").encode())
    assert load_sts("SICKR", str(tmp_path)).to_dict() == {
        "score": [4.5, 1.0],
        "sentence1": ["A", "C"],
        "sentence2": ["B", "D"],
    }


@pytest.mark.realdata
def test_loaded_pairs_know_their_task(real_data, tmp_path):
    """Also after a change of format. The development pairs are no published task's."""
    folder = str(real_data / "data" / "senteval")
    assert loaded_as(load_sts("STSB", folder).with_format("numpy")) == "STSB"
    assert loaded_as(load_sts("STSB", folder, "dev")) is None
    assert loaded_as(load_pairs(str(DEMO / "sts.tsv"))) is None


@pytest.mark.realdata
def test_real_tasks_have_the_published_pairs_and_subsets(real_data, caplog):
    for task in ("STS12", "STS14", "STS15"):
        pairs = load_sts(task, str(real_data / "data" / "senteval"))
        assert len(pairs) == STS_TASKS[task].pairs
        assert set(pairs["subset"]) == set(STS_TASKS[task].subsets)
    assert len(load_sts("STSB", str(real_data / "data" / "senteval"))) == STS_TASKS["STSB"].pairs
    assert len(load_sts("STSB", str(real_data / "data" / "senteval"), split="dev")) == 1500
    assert not caplog.text


@pytest.mark.realdata
def test_a_real_folder_reads_the_same_when_windows_has_touched_it(real_data, tmp_path):
    """All of 2014 with Windows line ends and byte order marks, cased and not tokenised, has the same gold scores."""
    source = real_data / "data" / "senteval" / STS_TASKS["STS14"].folder
    target = tmp_path / STS_TASKS["STS14"].folder
    shutil.copytree(source, target)
    for file in target.iterdir():
        text = file.read_text(encoding="utf-8").title()
        file.write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    expected, pairs = (load_sts("STS14", str(root)) for root in (real_data / "data" / "senteval", tmp_path))
    assert pairs["score"][:] == expected["score"][:]
    assert pairs["subset"][:] == expected["subset"][:]
    assert pairs["sentence1"][:] == [sentence.title() for sentence in expected["sentence1"]]


@pytest.mark.parametrize("task", [*YEARS, "STSB", "SICKR"])
def test_a_missing_task_is_named_with_what_to_do(tmp_path, task):
    with pytest.raises(ValueError, match=f"{STS_TASKS[task].folder}.*no such f.*Leave the task out with --tasks"):
        load_sts(task, str(tmp_path))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("STS.input.FNWN.txt", b"a\tb\nno tab\nc\td\n", "STS.input.FNWN.txt, line 2: 1 tab-separated fields"),
        (
            "STS.input.FNWN.txt",
            b"a\tb\n",
            r"STS.input.FNWN.txt has 1 lines, but .*STS.gs.FNWN.txt has 3: both files need",
        ),
        ("STS.gs.FNWN.txt", b"1\n\n", r"STS.input.FNWN.txt has 3 lines, but .*STS.gs.FNWN.txt has 2: both files need"),
        ("STS.gs.FNWN.txt", b"1\n2\ntwo\n", "STS.gs.FNWN.txt, line 3: 'two' is not a number"),
        ("STS.gs.FNWN.txt", b"1\ninf\n3\n", "STS.gs.FNWN.txt, line 2: 'inf' is not a number"),
        ("STS.input.FNWN.txt", b"a\tb\nc\t\xe9\nc\td\n", "STS.input.FNWN.txt, line 2: not UTF-8"),
        ("STS.input.FNWN.txt", None, "STS.input.FNWN.txt: no such file, though its counterpart exists"),
        ("STS.gs.FNWN.txt", None, "STS.gs.FNWN.txt: no such file, though its counterpart exists"),
    ],
)
def test_a_broken_file_is_named_with_its_line(year13, tmp_path, file, content, message):
    if content is None:
        (year13 / file).unlink()
    else:
        if file.startswith("STS.input") and b"no tab" in content:
            (year13 / "STS.gs.FNWN.txt").write_bytes(b"1\n2\n3\n")
        (year13 / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_sts("STS13", str(tmp_path))


def test_without_a_folder_or_a_hub_the_message_says_what_to_do():
    with pytest.raises(ValueError, match="mteb/sts12-sts could not be loaded: .*--sts_dir"):
        load_sts("STS12")


def test_pairs_of_ones_own(tmp_path):
    rows = {"sentence1": ["a", 'b "c', "2"], "sentence2": ["NA", "d", "3"], "score": [1.0, 2.5, 4.0]}
    data = datasets.Dataset.from_dict(rows)
    data.to_csv(tmp_path / "pairs.csv")
    data.to_json(tmp_path / "pairs.jsonl")
    data.to_parquet(tmp_path / "pairs.parquet")
    lines = ["score\tsentence1\tsentence2", "1.0\ta\tNA", '2.5\tb "c\td', "4\t2\t3"]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n")
    for suffix in ("csv", "jsonl", "parquet", "tsv"):
        assert load_pairs(str(tmp_path / f"pairs.{suffix}")).to_dict() == rows, suffix
    assert list(load_tasks([], None, str(tmp_path / "pairs.tsv"))) == ["pairs"]


def test_sentences_that_are_numbers_are_sentences_and_subsets_are_kept(tmp_path):
    (tmp_path / "years.csv").write_text("sentence1,sentence2,score,subset\n1984,1985,3,9\n2001,2010,1,9\n")
    assert load_pairs(str(tmp_path / "years.csv")).to_dict() == {
        "sentence1": ["1984", "2001"],
        "sentence2": ["1985", "2010"],
        "subset": ["9", "9"],
        "score": [3.0, 1.0],
    }


def test_unscored_pairs_of_ones_own_are_left_out_and_counted(tmp_path, caplog):
    (tmp_path / "some.csv").write_text("sentence1,sentence2,score\na,b,\nc,d,2\ne,f,nan\ng,h,1\n")
    assert load_pairs(str(tmp_path / "some.csv"))["sentence1"][:] == ["c", "g"]
    assert "some.csv: 2 of 4 pairs have no score, and are left out." in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.tsv", None, "none.tsv: no such file"),
        ("empty.tsv", b"", "empty.tsv: the file is empty"),
        ("pairs.xlsx", b"x", "pairs.xlsx: the name of a data file must end in .txt, .jsonl, .csv, .tsv, .parquet"),
        ("other.csv", b"a,score\nx,1\n", "other.csv: no column sentence1, sentence2; it has a, score"),
        (
            "bad.csv",
            b"sentence1,sentence2,score\na,b,1\nc,d,two\n",
            "bad.csv, line 3: the score 'two' is not a number",
        ),
        (
            "inf.csv",
            b"sentence1,sentence2,score\na,b,1\nc,d,-inf\n",
            "inf.csv, line 3: the score '-inf' is not a number",
        ),
        ("latin.tsv", b"sentence1\tsentence2\tscore\na\tb\t1\n\xe9\tb\t1\n", "latin.tsv, line 3: not UTF-8"),
        ("bare.csv", b"sentence1,sentence2,score\na,b,\n", "bare.csv: no scored pair in it"),
        ("broken.jsonl", b'{"sentence1": \n', "broken.jsonl, line 1: not JSON"),
    ],
)
def test_bad_pairs_end_in_one_message(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_pairs(str(tmp_path / name))


def test_the_demos_pairs_are_read_whole():
    assert len(load_pairs(str(PROJECT / "demo" / "sts.tsv"))) == 420
