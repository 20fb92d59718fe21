"""Runs that are a process and a line of a file each, so that the command that makes them resumes what was stopped."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock
from typing import Any

from tqdm.auto import tqdm

from benchmarks.common import SHARED, parser_for
from sarcse.training.record import code_commit


WRITING = Lock()


def parser_for_runs(docstring: str, seeds: int) -> argparse.ArgumentParser:
    """A parser with the options of how many runs are made, and how; `seeds` is the default."""
    parser = parser_for(docstring)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", default=str(SHARED))
    parser.add_argument("--table", action="store_true", help="Print the tables of all runs, and train nothing.")
    parser.add_argument("--run", type=json.loads, help=argparse.SUPPRESS)
    return parser


def read_lines(file: Path) -> list[dict[str, Any]]:
    """All runs made so far."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def run_in_new_process(command: list[str], threads: int, name: str) -> dict[str, Any]:
    """
    The JSON object that a Python command prints last. A process of its own, since the number of threads is set per
    process.

    Raises:
        RuntimeError: if the command fails.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.run([sys.executable, *command], env=environment, capture_output=True, encoding="utf-8")
    if process.returncode != 0:
        raise RuntimeError(f"{name} failed with exit code {process.returncode}:\n{process.stderr[-3000:]}")
    return json.loads(process.stdout.splitlines()[-1])


def add_line(file: Path, line: dict[str, Any]) -> None:
    with WRITING, file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")


def make_missing(
    module: str,
    file: Path,
    runs: list[dict[str, Any]],
    key_of: Callable[[dict[str, Any]], str],
    data: str,
    threads: int,
    processes: int,
) -> None:
    """Make the runs that have no line in the file, by `python -m MODULE --run RUN --data DATA`."""
    commit, done = code_commit(), {key_of(line) for line in read_lines(file)}

    def make(run: dict[str, Any]) -> None:
        found = run_in_new_process(["-m", module, "--run", json.dumps(run), "--data", data], threads, key_of(run))
        add_line(file, {**run, **found, "commit": commit})

    in_processes(processes, make, [run for run in runs if key_of(run) not in done])


def in_processes(number: int, make: Callable[[dict[str, Any]], None], runs: list[dict[str, Any]]) -> None:
    """Make runs, several at a time. After Ctrl-C the running ones still finish, with a line or a checkpoint."""
    with ThreadPoolExecutor(number) as pool:
        futures = [pool.submit(make, run) for run in runs]
        try:
            for future in tqdm(as_completed(futures), total=len(futures), unit="run"):
                future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
