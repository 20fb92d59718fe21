"""What `eval_sts.py` does: score models, or explain what their embeddings keep."""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from sarcse.data.labelled import check_reference, load_labelled, load_retrieval
from sarcse.data.sts import load_tasks
from sarcse.evaluation import figures
from sarcse.evaluation.comparison import PRECISION, Measurement, compare
from sarcse.evaluation.embedding import (
    Jobs,
    draw_figures,
    explain,
    explanation_text,
    load_embedders,
    measure,
    recorded_picked_on,
    task_picked_on,
)
from sarcse.evaluation.jobs import labelled_job, retrieval_job
from sarcse.evaluation.report import report, table_in, write_results
from sarcse.evaluation.seeds import groups_of


def run(args: argparse.Namespace, prog: str) -> None:
    """Do what the options of `eval_sts.py` ask for. What the user can fix ends the process with one line."""
    try:
        device = choose_device(args.device)
        explain_command(args, device) if args.explain else score_command(args, device)
    except ValueError as error:
        if PartialState().is_main_process:
            print(f"{prog}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    PartialState().destroy_process_group()


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
        jobs = load_jobs(args)
        of_pairs = args.pairs is not None or args.sts_dir is not None or not jobs
        tasks = load_tasks(args.tasks, args.sts_dir, args.pairs) if of_pairs else {}
    measurements: dict[str, Measurement] = {}
    for model in args.models:
        for row, pooler, embed in load_embedders(
            model, args.pooler, args.revision, device, args.batch_size, args.trust_remote_code
        ):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.bf16):
                measurements[row] = measure(embed, tasks, pooler, jobs)
            measurements[row].picked_on = task_picked_on(recorded_picked_on(model), tasks)
            if not all(np.isfinite(values).all() for values in measurements[row].similarities.values()):
                raise ValueError(f"{row}: some embeddings are not finite numbers; check the model's weights.")
    if PartialState().is_main_process:
        results = compare(measurements, tasks, "bfloat16" if args.bf16 else PRECISION)
        results.groups = groups_of(list(results.models))
        print(report(results) if args.format == "markdown" else table_in(args.format, results))
        if output_dir is not None:
            write_results(results, output_dir / "results.json")
            draw_figures(results, measurements, tasks, output_dir)


def load_jobs(args: argparse.Namespace) -> Jobs:
    """
    What `--labelled` and `--retrieval` ask for, by the name of the file or folder.

    Raises:
        ValueError: if it cannot be read.
    """
    jobs: Jobs = {}
    if args.labelled is not None:
        columns = args.text_column, args.label_column
        rows, reference = load_labelled(args.labelled, *columns), None
        if args.reference is not None:
            reference = load_labelled(args.reference, *columns)
            check_reference(args.reference, reference, rows)
        jobs[Path(args.labelled).name.split(".")[0]] = partial(labelled_job, rows=rows, reference=reference)
    if args.retrieval is not None:
        jobs[Path(args.retrieval).resolve().name] = partial(retrieval_job, collection=load_retrieval(args.retrieval))
    return jobs


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
