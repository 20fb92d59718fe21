"""The options of `eval_sts.py`, which is `sarcse eval` in an installed package. No import here is slow."""

import argparse
import sys

from sarcse.options import FIRST_LAST, STS_TASKS, TABLE_FORMATS, in_utf8, one_line_errors


def parse_arguments(arguments: list[str] | None = None, prog: str = "eval_sts.py") -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Score and compare models: Spearman correlation x 100 on the seven STS tasks, 'all' setting.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="Folder or Hub id of a SARCSE or sentence-transformers model, or of any text encoder.",
    )
    parser.add_argument(
        "--pooler",
        nargs="+",
        type=pooler_without_layers,
        default=["mean"],
        help="How to pool encoders without a pooling of their own, for example mean or cls; a row for each (mean).",
    )
    parser.add_argument("--revision", default="main", help="Branch, tag or commit of models from the Hub (main).")
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="Run an encoder's own code. Needed if transformers has no code for the encoder; read the code first.",
    )
    parser.add_argument("--sts_dir", help="Folder with the tasks in SentEval's layout. Default: the Hub's data sets.")
    parser.add_argument("--tasks", nargs="+", choices=STS_TASKS, default=list(STS_TASKS), help="Default: all seven.")
    parser.add_argument("--pairs", help="Score on this file instead: sentence1, sentence2, score (.tsv, .csv, ...).")
    parser.add_argument(
        "--labelled",
        metavar="FILE",
        help="Score clusters and neighbours on texts with labels (.tsv, .csv, .jsonl, .parquet), instead of STS tasks "
        "unless these are given, too.",
    )
    parser.add_argument("--text_column", default="text", help="The column with the texts (text).")
    parser.add_argument("--label_column", default="label", help="The column with their labels (label).")
    parser.add_argument("--reference", metavar="FILE", help="Labelled texts to find the neighbours in. Default: FILE.")
    parser.add_argument(
        "--retrieval", metavar="FOLDER", help="Score search on corpus.jsonl, queries.jsonl and qrels/ (BEIR's layout)."
    )
    parser.add_argument(
        "--explain",
        nargs=2,
        action="append",
        metavar="SENTENCE",
        help="Instead of scores, show which tokens of two sentences a SARCSE model keeps. May be repeated.",
    )
    parser.add_argument(
        "--output_dir", help="Where to write results.json, results.md and the figures (--explain: output/explain)."
    )
    parser.add_argument(
        "--format",
        choices=TABLE_FORMATS,
        default="markdown",
        help="latex, csv: print the main table alone (markdown).",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="Sentences encoded at once (64).")
    parser.add_argument("--bf16", action="store_true", help="Encode under bfloat16 autocast.")
    parser.add_argument("--device", help="Default: a GPU, or whatever accelerate launch gives.")
    args = parser.parse_args(in_utf8(sys.argv[1:] if arguments is None else arguments))
    if args.batch_size < 1:
        parser.error(f"argument --batch_size: must be at least 1, got {args.batch_size}")
    check_effect(parser, args)
    return args


def check_effect(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a message if an option was given that another one makes ineffective."""
    of_labelled = ("text_column", "label_column", "reference")
    of_scores = (
        "pooler",
        "sts_dir",
        "tasks",
        "pairs",
        "labelled",
        *of_labelled,
        "retrieval",
        "format",
        "batch_size",
        "bf16",
    )
    for given, without_effect in (("explain", of_scores), ("pairs", ("sts_dir", "tasks"))):
        for name in without_effect if getattr(args, given) else ():
            if getattr(args, name) != parser.get_default(name):
                parser.error(f"argument --{name}: has no effect with --{given}. Leave it out.")
    for name in of_labelled if args.labelled is None else ():
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"argument --{name}: has no effect without --labelled.")
    without_pairs = args.pairs is None and args.sts_dir is None
    if without_pairs and (args.labelled or args.retrieval) and args.tasks != parser.get_default("tasks"):
        parser.error("argument --tasks: add --sts_dir, since --labelled and --retrieval replace the STS tasks.")


def pooler_without_layers(name: str) -> str:
    from modeling_sarcse import POOLERS  # which needs torch: only if --pooler is given

    names = [*(name for name, pooler in POOLERS.items() if not pooler.has_layers), FIRST_LAST]
    if name not in names:
        raise argparse.ArgumentTypeError(f"invalid choice: {name!r} (choose from {', '.join(names)})")
    return name


def main(arguments: list[str] | None = None, prog: str = "eval_sts.py") -> None:
    with one_line_errors(prog):
        args = parse_arguments(arguments, prog)
        from sarcse.evaluation.scoring import run  # torch and the rest take seconds: for options that are right
    run(args, prog)
