"""
What the commands need to read their options. It imports nothing that is slow, torch least of all, so that `--help` and
a typo are answered at once.
"""

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path


# A pooling of plain encoders that evaluations have as a baseline: SimCSE's "first-last avg.".
FIRST_LAST = "first_last_average"
# What `eval_sts.py` prints: a report, or its main table alone (sarcse/evaluation/report.py).
TABLE_FORMATS = ("markdown", "latex", "csv")
# Where the counts for the token weights come from, if not from a file.
ENGLISH, CORPUS = "english", "corpus"
# The metric that needs no labels (sarcse/training/health.py).
HEALTH = "health"
# The correlation on the graded pairs, or the health without any.
AUTO = "auto"

# The templates of releases and Spaces, and the command: beside this package in the repository, inside it if installed.
INSTALLED = Path(__file__).with_name("model_card")
MODEL_CARD = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[1] / "model_card"
RELEASE_COMMAND = ("python", "-m", "sarcse.model_card" if INSTALLED.is_dir() else "model_card")


# The metric of labelled texts: the share of ten nearest neighbours with a text's own label.
LABELLED = "labelled_neighbours"


def metric_name(name: str) -> str:
    """A metric's name without the prefix that transformers adds."""
    return name.removeprefix("eval_")


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
    eval_labelled: str | None = field(
        default=None,
        metadata={
            "help": "A file of texts with labels, whose neighbours are scored at each evaluation, and their clusters "
            "before and after. It may be the train_file: labels score and pick, but do not train."
        },
    )
    label_column: str = field(default="label", metadata={"help": "The column of eval_labelled with the labels."})

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: if options are possible one by one, but not together.
        """
        for one, other in (("train_file", "dataset_name"), ("eval_pairs", "eval_labelled"), ("eval_pairs", "sts_dir")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"give either --{one} or --{other}, not both.")
        for name, needed in (("dataset_config_name", "dataset_name"), ("label_column", "eval_labelled")):
            if getattr(self, name) != getattr(type(self), name) and getattr(self, needed) is None:
                raise ValueError(f"--{name} has no effect without --{needed}.")
        if self.max_train_samples is not None and self.max_train_samples < 1:
            raise ValueError(f"--max_train_samples must be at least 1, got {self.max_train_samples}.")
        if self.streaming and self.max_train_samples is not None:
            raise ValueError("--max_train_samples is for a corpus in memory; --max_steps limits how much is streamed.")


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


@dataclass
class SpaceOptions:
    """
    Options of the release command for a Space.

    Args:
        space (`str`): Folder that the Space is written to.
        push_space (`str`, *optional*): Its repository on the Hub, `you/name`. Without it the Space stays here.
        public_space (`bool`): Make a new Space public even if its model is private.
        beside (`str`, *optional*):
            Folder or Hub id of the second model. Default: the encoder that the training started from.
        trust_remote_code (`bool`): The page may run a model's code that is not this installation's.
    """

    space: str
    push_space: str | None = None
    public_space: bool = False
    beside: str | None = None
    trust_remote_code: bool = False

    def flags(self) -> list[str]:
        """The flags that make this Space again."""
        given = {f"--{f.name}": getattr(self, f.name) for f in fields(self)}
        return [
            part for flag, value in given.items() if value for part in ([flag] if value is True else [flag, value])
        ]


@dataclass
class ReleaseOptions(ReleaseArguments):
    """
    Options of the release command and the trainer, in addition to the content of a release (`ReleaseArguments`).

    Args:
        model_dir (`str`): Output folder of the training.
        release_dir (`str`): Where the release is built; replaced each time.
        push (`str`, *optional*): Repository on the Hub, `you/name`. Without it the release stays here.
        private (`bool`): Make a new repository private.
        revision (`str`): Branch to push to.
        tag (`str`, *optional*): Name of this release. Default: `release-` and a hash of its content.
        commit_message (`str`, *optional*): Default: `Release` and the tag.
        license (`str`, *optional*): Licence of the model, for the card.
        language (`list[str]`): Languages of the training text, for the card.
        results (`str`, *optional*): results.json of eval_sts.py. Default: the scores that train.py wrote.
        seeds (`list[str]`): Folders of the same training with other seeds, for mean and deviation.
        prompt (`list[str]`): Each `NAME=TEXT`, for sentence-transformers' `encode(..., prompt_name=NAME)`.
        sts_dir (`str`, *optional*), pairs (`str`, *optional*):
            What to score int8 on: STS-B in a folder with SentEval's layout, or a file of graded pairs. Default: STS-B
            from the Hub.
        space (`SpaceOptions`, *optional*): The release's Space. Default: none.
    """

    model_dir: str
    release_dir: str
    push: str | None = None
    private: bool = False
    revision: str = "main"
    tag: str | None = None
    commit_message: str | None = None
    license: str | None = None
    language: list[str] = field(default_factory=list)
    results: str | None = None
    seeds: list[str] = field(default_factory=list)
    prompt: list[str] = field(default_factory=list)
    sts_dir: str | None = None
    pairs: str | None = None
    space: SpaceOptions | None = None

    def command(self) -> str:
        """The command line that does this again."""
        parts = [*RELEASE_COMMAND, self.model_dir, "--release_dir", self.release_dir]
        for name in ("push", "tag", "commit_message", "license", "results", "sts_dir", "pairs"):
            if getattr(self, name) is not None:
                parts += [f"--{name}", getattr(self, name)]
        for name in ("private", *(f.name for f in fields(ReleaseArguments))):
            parts += [f"--{name}"] * getattr(self, name)
        parts += ["--revision", self.revision] if self.revision != "main" else []
        for name in ("language", "seeds", "prompt"):
            parts += [f"--{name}", *getattr(self, name)] if getattr(self, name) else []
        parts += self.space.flags() if self.space is not None else []
        return shlex.join(parts)


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
    """
    A context in which a user error ends the command with one line and exit code 2, Ctrl-C silently with 130, and a
    reader of its output that has enough, such as `head`, silently with 141.
    """
    try:
        yield
        sys.stdout.flush()
    except ValueError as error:
        print(f"{command}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python would write the rest when it ends, and fail once more
        sys.exit(141)  # 128 + SIGPIPE, which not every system has
