"""
Score sentence embeddings on the seven semantic textual similarity (STS) tasks, offline or from the Hub, compare
models, and draw the figures of the paper.

    python eval_sts.py MODEL [MODEL ...] [--sts_dir DIR] [--tasks STS12 ... STSB SICKR] [--output_dir OUT]
    python eval_sts.py MODEL --explain "A sentence." "Another." [--output_dir OUT]

The setting is the one that SimCSE calls "all" (arXiv 2104.08821, appendix B): all subsets of a year are concatenated,
and their cosine similarities give one Spearman correlation, times 100.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from modeling_sarcse import POOLERS
from sarcse import figures
from sarcse.comparison import PRECISION, Measurement, compare, report, write_results
from sarcse.embedding import (
    draw_figures,
    explain,
    explanation_text,
    load_embedders,
    measure,
    recorded_picked_on,
    task_picked_on,
)
from sarcse.parsing import in_utf8
from sarcse.sts import STS_TASKS, load_tasks


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
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
        choices=[name for name, pooler in POOLERS.items() if not pooler.has_layers],
        default=["mean"],
        help="How to pool encoders without a pooling of their own; one row for each pooler given (mean).",
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
        "--explain",
        nargs=2,
        action="append",
        metavar="SENTENCE",
        help="Instead of scores, show which tokens of two sentences a SARCSE model keeps. May be repeated.",
    )
    parser.add_argument(
        "--output_dir", help="Where to write results.json, results.md and the figures (--explain: output/explain)."
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
    of_scores = ("pooler", "sts_dir", "tasks", "pairs", "batch_size", "bf16")
    for given, without_effect in (("explain", of_scores), ("pairs", ("sts_dir", "tasks"))):
        for name in without_effect if getattr(args, given) else ():
            if getattr(args, name) != parser.get_default(name):
                parser.error(f"argument --{name}: has no effect with --{given}. Leave it out.")


def choose_device(name: str | None) -> torch.device:
    """
    The device of this process. Call this before anything else that uses accelerate.

    Raises:
        ValueError: if there is no such device, or one is chosen for several processes.
    """
    state = PartialState(cpu=name == "cpu" or not torch.accelerator.is_available())
    if name is None or name == "cpu":
        return state.device
    if state.num_processes > 1:
        raise ValueError(f"--device {name}: each of several processes has its own device; leave it out.")
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {error}") from error


def writable_folder(name: str) -> Path:
    """
    Create the output folder, before the scoring rather than after it.

    Raises:
        ValueError: if the folder cannot be created or written to.
    """
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=name):
            return Path(name)
    except OSError as error:
        raise ValueError(f"--output_dir {name}: {error.strerror}.") from error


def score_command(args: argparse.Namespace, device: torch.device) -> None:
    output_dir = None if args.output_dir is None else writable_folder(args.output_dir)
    with PartialState().main_process_first():
        tasks = load_tasks(args.tasks, args.sts_dir, args.pairs)
    measurements: dict[str, Measurement] = {}
    for model in args.models:
        for row, pooler, embed in load_embedders(
            model, args.pooler, args.revision, device, args.batch_size, args.trust_remote_code
        ):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.bf16):
                measurements[row] = measure(embed, tasks, pooler)
            measurements[row].picked_on = task_picked_on(recorded_picked_on(model), tasks)
            if not all(np.isfinite(values).all() for values in measurements[row].similarities.values()):
                raise ValueError(f"{row}: some embeddings are not finite numbers; check the model's weights.")
    if PartialState().is_main_process:
        results = compare(measurements, tasks, "bfloat16" if args.bf16 else PRECISION)
        print(report(results))
        if output_dir is not None:
            write_results(results, output_dir / "results.json")
            draw_figures(results, measurements, tasks, output_dir)


def explain_command(args: argparse.Namespace, device: torch.device) -> None:
    if not PartialState().is_main_process:
        return
    output_dir = writable_folder(args.output_dir or "output/explain")
    options = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    explained = explain(args.models, args.explain, device, **options)
    page = output_dir / "token_importance.html"
    page.write_text(figures.importance_page(explained), encoding="utf-8")
    print(explanation_text(explained))
    print(f"Shaded: {page}")


def main(arguments: list[str] | None = None) -> None:
    try:
        args = parse_arguments(arguments)
        device = choose_device(args.device)
        explain_command(args, device) if args.explain else score_command(args, device)
    except ValueError as error:
        if PartialState().is_main_process:
            print(f"eval_sts.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
