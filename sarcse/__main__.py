"""
The command of an installed package, which `python -m sarcse` is, too.

    sarcse train [RECIPE.yaml] [--field value ...]      as train.py
    sarcse eval MODEL [MODEL ...] [--labelled FILE]     as eval_sts.py
    sarcse release MODEL --release_dir OUT              as python -m model_card
    sarcse space MODEL DIR                              the same with --space DIR
    sarcse search MODEL FILE "a question"               the most similar texts
    sarcse cluster MODEL FILE -o clusters.csv           every row with its cluster
    sarcse duplicates MODEL FILE --threshold 0.9        pairs of similar texts

`sarcse COMMAND --help` lists the options of each.
"""

import argparse
import runpy
import sys

from sarcse.options import RELEASE_COMMAND, in_utf8, one_line_errors


ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")


def train(arguments: list[str]) -> None:
    from sarcse.training import command

    command.main(arguments, "sarcse train")
    command.leave_group()


def evaluate(arguments: list[str]) -> None:
    from sarcse.evaluation.command import main

    main(arguments, "sarcse eval")


def release(arguments: list[str]) -> None:
    sys.argv[1:] = arguments
    runpy.run_module(RELEASE_COMMAND[-1], run_name="__main__", alter_sys=True)


def space(arguments: list[str]) -> None:
    if len(arguments) < 2 or arguments[1].startswith("-"):
        sys.exit("usage: sarcse space MODEL DIR [--push_space REPO ...]; all options: sarcse release --help")
    release([arguments[0], "--space", *arguments[1:]])


def texts_parser(command: str) -> argparse.ArgumentParser:
    """The options of the commands that take a file of texts."""
    what = {
        "search": "Print the texts of a file that are most similar to a query.",
        "cluster": "Put the texts of a file into clusters by k-means, and print typical texts of each.",
        "duplicates": "Print the pairs of texts in a file that are most similar.",
    }
    parser = argparse.ArgumentParser(prog=f"sarcse {command}", description=what[command], allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL", help="Folder or Hub id of a model of any kind.")
    parser.add_argument("file", metavar="FILE", help=f"{', '.join(ENDINGS)} or .txt, compressed or not.")
    if command == "search":
        parser.add_argument("query", metavar="QUERY", help="What to look for.")
    parser.add_argument("--text_column", default="text", help="The column with the texts (text).")
    if command == "cluster":
        parser.add_argument("--clusters", type=positive, help="Number of clusters. Default: by the best silhouette.")
    else:
        parser.add_argument("--top", type=positive, default=10, help="How many are printed (10).")
    if command == "duplicates":
        parser.add_argument("--threshold", type=float, default=0.9, help="Lowest similarity, from -1 to 1 (0.9).")
    parser.add_argument("-o", "--output", type=table, help=f"Write the rows to this file: {', '.join(ENDINGS)}.")
    parser.add_argument("--cache", action="store_true", help="Keep the embeddings in FILE.embeddings.npz for later.")
    parser.add_argument("--revision", default="main", help="Branch, tag or commit of a model from the Hub (main).")
    parser.add_argument("--batch_size", type=positive, default=64, help="Texts encoded at once (64).")
    parser.add_argument("--device", help="Default: a GPU, if there is one.")
    return parser


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def table(name: str) -> str:
    if not name.endswith(ENDINGS):
        raise argparse.ArgumentTypeError(f"the name must end in {', '.join(ENDINGS)}, got {name!r}")
    return name


def on_texts(command: str, arguments: list[str]) -> None:
    parser = texts_parser(command)
    with one_line_errors(parser.prog):
        args = parser.parse_args(in_utf8(arguments))
        args.command = command
        from sarcse.evaluation.texts import run

        run(args)


COMMANDS = {"train": train, "eval": evaluate, "release": release, "space": space}
ON_TEXTS = ("search", "cluster", "duplicates")


def main() -> None:
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in COMMANDS:
        COMMANDS[command](arguments)
    elif command in ON_TEXTS:
        on_texts(command, arguments)
    elif command in ("-h", "--help"):
        print(str(__doc__).strip())
    else:
        print(f"sarcse: error: no command {command!r}: {', '.join([*COMMANDS, *ON_TEXTS])}.", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
