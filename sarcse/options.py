"""
What the commands need to read their options. It imports nothing that is slow, torch least of all, so that `--help` and
a typo are answered at once.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


# A pooling of plain encoders that evaluations have as a baseline: SimCSE's "first-last avg.".
FIRST_LAST = "first_last_average"


# --- STS tasks -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StsTask:
    """
    One task: its place in a SentEval folder, its data set on the Hub, the number of its scored test pairs, and its
    subsets.
    """

    folder: str
    hub_id: str
    pairs: int
    subsets: tuple[str, ...] = ()


# The subsets that SentEval evaluates on (senteval/sts.py); the SMT subset of 2013 is not free.
STS_TASKS = {
    "STS12": StsTask(
        "STS/STS12-en-test",
        "mteb/sts12-sts",
        3108,
        ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    ),
    "STS13": StsTask("STS/STS13-en-test", "mteb/sts13-sts", 1500, ("FNWN", "headlines", "OnWN")),
    "STS14": StsTask(
        "STS/STS14-en-test",
        "mteb/sts14-sts",
        3750,
        ("deft-forum", "deft-news", "headlines", "images", "OnWN", "tweet-news"),
    ),
    "STS15": StsTask(
        "STS/STS15-en-test",
        "mteb/sts15-sts",
        3000,
        ("answers-forums", "answers-students", "belief", "headlines", "images"),
    ),
    "STS16": StsTask(
        "STS/STS16-en-test",
        "mteb/sts16-sts",
        1186,
        ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
    ),
    "STSB": StsTask("STS/STSBenchmark", "mteb/stsbenchmark-sts", 1379),
    "SICKR": StsTask("SICK", "mteb/sickr-sts", 4927),
}


# --- Groups of options -----------------------------------------------------------------------------------------------


@dataclass
class DataArguments:
    """Where the sentences and the graded pairs come from."""

    _argument_group_name = "data"

    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Sentences: .txt with one per line, .jsonl, .csv, .tsv or .parquet (also .gz, .xz, .zst), local "
            "or hf://, or a pattern for several files, 'corpus/*.txt'. Default: SimCSE's million Wikipedia sentences "
            "from the Hub."
        },
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "A data set on the Hub instead of a file; its split `train` is used."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The data set's configuration."})
    text_column: str = field(default="text", metadata={"help": "The column with the sentences."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train only on the first N sentences."})
    streaming: bool = field(
        default=False,
        metadata={"help": "Read the sentences while training, for corpora of any size. Needs --max_steps."},
    )
    sts_dir: str | None = field(
        default=None, metadata={"help": "STS tasks in SentEval's layout. Default: the Hub's data sets."}
    )
    sts_tasks: list[str] = field(
        default_factory=lambda: list(STS_TASKS),
        metadata={"help": "Tasks to score before and after training.", "choices": list(STS_TASKS)},
    )
    eval_pairs: str | None = field(
        default=None,
        metadata={"help": "A file of graded pairs (sentence1, sentence2, score), used instead of all STS data."},
    )


@dataclass(kw_only=True)
class ReleaseArguments:
    """The form of a release, for the command that makes one and for training that ends with one."""

    plain: bool = field(
        default=False,
        metadata={
            "help": "Release a plain encoder with its pooling, which any tool loads without this project's code. This "
            "is the default where the pooler allows it; with this flag, any other release is an error."
        },
    )
    with_code: bool = field(
        default=False, metadata={"help": "Always release the SARCSE model with its code, for trust_remote_code."}
    )
    with_decoder: bool = field(
        default=False,
        metadata={
            "help": "Keep the decoder in a release with code. Only further training and token importance use it."
        },
    )
    onnx_int8: bool = field(
        default=False, metadata={"help": "Add int8 ONNX files to the float32 one, and score them on STS-B."}
    )


# --- The command line ------------------------------------------------------------------------------------------------


def in_utf8(arguments: list[str]) -> list[str]:
    """
    The arguments as they are.

    Raises:
        ValueError: if one of them is not UTF-8, as the names of models' files and the text of records have to be.
    """
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{argument!r} is not UTF-8. If it names a file or folder, rename that.") from error
    return arguments


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """A context in which a user error ends the command with one line and exit code 2, and Ctrl-C with 130 silently."""
    try:
        yield
    except ValueError as error:
        print(f"{command}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
