"""
How time and memory grow with the corpus, the batch and the number of processes, and how long the start takes.

    python -m benchmarks.growth [--bf16] [--output growth.json]

The figure (.png, .svg) is written next to the JSON file. Every number comes from a new process. The start is
everything from the command to the first step, except imports: reading, tokenising, counting tokens and loading the
encoder. A cold start has an empty cache; a cached start follows an identical process. Peak memory is that of one
process.
"""

import argparse
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import (
    StepTimes,
    arguments_for,
    in_new_processes,
    peak_mebibytes,
    print_table,
    trainer_for,
    write_output,
)


CORPORA = [10_000, 100_000, 500_000]
BATCHES = [64, 128, 256, 512, 1024]
WARM_UP = 2


def job(arguments: argparse.Namespace, fields: dict[str, Any], steps: int, environment: dict[str, str]) -> dict:
    """Seconds of the start, sentences per second of the training after it, and peak memory, in this process."""
    os.environ.update(environment)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", arguments.threads)))
    import sarcse.training.running  # noqa: F401  imports are not timed

    start, times = time.perf_counter(), StepTimes(WARM_UP)
    with trainer_for(arguments, [], max_steps=WARM_UP + steps, **fields) as trainer:
        started = time.perf_counter() - start
        trainer.add_callback(times)
        trainer.train()
    speed = steps * trainer.args.global_batch_size / sum(times.seconds())
    return {"start_seconds": started, "sentences_per_second": speed, "peak_mebibytes": peak_mebibytes()}


def together(number: int) -> list[dict[str, str]]:
    """The environment that a launcher gives each of `number` processes on this machine, with one thread each."""
    if number == 1:
        return [{"OMP_NUM_THREADS": "1"}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(number), "OMP_NUM_THREADS": "1"}
    return [{**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]


def row(first: dict[str, float], run: dict[str, float]) -> dict[str, float]:
    """The given cells of a row, followed by the speed and memory of a training."""
    whole = {**first, **{name: run[name] for name in ("sentences_per_second", "peak_mebibytes")}}
    print(whole, flush=True)
    return whole


def by_corpus(arguments: argparse.Namespace, size: int) -> dict[str, float]:
    fields = {"max_train_samples": size, "per_device_train_batch_size": 64}
    with tempfile.TemporaryDirectory() as cache:
        call = (arguments, fields, 16, {"HF_DATASETS_CACHE": cache})
        cold, cached = (in_new_processes(job, call) for _ in range(2))
    starts = {"cold_start_seconds": cold["start_seconds"], "cached_start_seconds": cached["start_seconds"]}
    return row({"sentences": size, **starts}, cached)


def by_batch(arguments: argparse.Namespace, size: int) -> dict[str, float]:
    call = (arguments, {"per_device_train_batch_size": size}, max(2, 1024 // size), {})
    return row({"batch_size": size}, in_new_processes(job, call))


def by_processes(arguments: argparse.Namespace, number: int) -> dict[str, float]:
    fields = {"per_device_train_batch_size": 64 // number}
    calls = [(arguments, fields, 16, place) for place in together(number)]
    return row({"processes": number}, in_new_processes(job, *calls))


def table(rows: list[dict[str, float]]) -> list[list[str]]:
    names = {
        "cold_start_seconds": "cold start, s",
        "cached_start_seconds": "cached start, s",
        "sentences_per_second": "sentences/s",
        "peak_mebibytes": "peak memory, MiB",
    }
    cells = [[format(x, ",.1f" if "seconds" in name else ",.0f") for name, x in line.items()] for line in rows]
    return [[names.get(name, name.replace("_", " ")) for name in rows[0]], *cells]


def draw(results: dict[str, Any], path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from sarcse.evaluation.figures import COLORS, MARKERS, STYLE, save

    corpus, batch = results["corpus"], results["batch"]
    starts = {"cold": "cold_start_seconds", "cached": "cached_start_seconds"}
    panels_of = [  # title, x axis, rows, key of x, lines as label -> key
        ("a start", "sentences", corpus, "sentences", starts),
        ("speed", "batch size", batch, "batch_size", {"sentences a second": "sentences_per_second"}),
        ("memory", "batch size", batch, "batch_size", {"peak, MiB": "peak_mebibytes"}),
    ]
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 2.6))
        for panel, (title, label, rows, x, lines) in zip(figure.subplots(1, 3), panels_of):
            for number, (name, key) in enumerate(lines.items()):
                values = [row[key] for row in rows]
                panel.plot([row[x] for row in rows], values, MARKERS[number], ls="-", color=COLORS[number], label=name)
            panel.set(title=title, xlabel=label, xscale="log")
            panel.set_ylim(0, 1.1 * max(row[key] for row in rows for key in lines.values()))
            panel.set_ylabel("seconds" if len(lines) > 1 else name)
            ticks = [row[x] for row in rows]
            panel.set_xticks(ticks, [f"{tick // 1000}k" if tick >= 10_000 else str(tick) for tick in ticks])
            panel.minorticks_off()
            if len(lines) > 1:
                panel.legend()
        save(figure, path)


def main() -> None:
    parser = arguments_for(__doc__)
    parser.add_argument("--bf16", action="store_true")
    arguments = parser.parse_args()
    results = {
        "corpus": [by_corpus(arguments, size) for size in CORPORA],
        "batch": [by_batch(arguments, size) for size in BATCHES],
        "processes": [by_processes(arguments, number) for number in (1, 2)],
    }
    for name, rows in results.items():
        print_table(f"By {name}", table(rows))
    write_output(results, arguments.output)
    if arguments.output:
        draw(results, arguments.output)


if __name__ == "__main__":
    main()
