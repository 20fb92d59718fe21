"""
Checks that memory stays flat in a long training with many evaluations and checkpoints.

    python -m benchmarks.soak [--minutes 30] [--output_dir output/soak] [train.py's flags]

Starts train.py on the demo's data, with an evaluation and a checkpoint every 5 steps. Its resident memory is read
every few seconds, and SIGTERM stops it when the time is up. Writes `memory.json` and the figure `memory.png`. The
number to look at is the growth from the second tenth of the run to the last; the first tenth contains imports and
warm-up.
"""

import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
from matplotlib import pyplot as plt

from benchmarks.common import MEBIBYTE, PROJECT, parser_for, write_output


def soak(minutes: float, output_dir: Path, flags: list[str]) -> list[tuple[float, float]]:
    """Run train.py for this many minutes; returns its resident memory as (seconds, MiB)."""
    command = [
        *(sys.executable, PROJECT / "train.py", PROJECT / "recipes" / "demo.yaml", "--output_dir", output_dir / "run"),
        *("--max_steps", "10000000", "--eval_strategy", "steps", "--eval_steps", "5", "--save_strategy", "steps"),
        *("--save_steps", "5", "--save_total_limit", "2", "--load_best_model_at_end", "true", *flags),
    ]
    log = output_dir / "train.log"
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(list(map(str, command)), cwd=PROJECT, stdout=stream, stderr=subprocess.STDOUT)
        samples, start = [], time.monotonic()
        try:
            while process.poll() is None and time.monotonic() < start + 60 * minutes:
                samples.append((time.monotonic() - start, psutil.Process(process.pid).memory_info().rss / MEBIBYTE))
                time.sleep(min(5, minutes))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
    if process.returncode != 128 + signal.SIGTERM:
        sys.exit(f"train.py stopped early with exit code {process.returncode}: see {log}.")
    return samples


def main() -> None:
    parser = parser_for(__doc__)
    parser.epilog = "All other flags are train.py's."
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--output_dir", type=Path, default=Path("output/soak"))
    arguments, flags = parser.parse_known_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    samples = soak(arguments.minutes, arguments.output_dir, flags)
    seconds, memory = zip(*samples)
    size = max(1, len(memory) // 10)
    tenths = [round(statistics.median(memory[start : start + size])) for start in range(0, size * 10, size)]
    state = max((arguments.output_dir / "run").glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    steps = json.loads((state / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    result = {"steps": steps, "minutes": arguments.minutes, "mebibytes_by_tenth": tenths, "samples": samples}
    write_output(result, arguments.output_dir / "memory.json")
    plt.plot([second / 60 for second in seconds], memory)
    plt.ylim(bottom=0)
    plt.xlabel("minutes")
    plt.ylabel("resident memory, MiB")
    plt.title(f"{steps} steps, {steps // 5} evaluations and checkpoints")
    plt.savefig(arguments.output_dir / "memory.png", dpi=150)
    print(f"{steps} steps. Median resident memory by tenths of the run, MiB: {' '.join(map(str, tenths))}")
    print(
        f"Growth from the second tenth to the last: {tenths[-1] - tenths[1]} MiB ({tenths[-1] / tenths[1] - 1:+.1%})"
    )


if __name__ == "__main__":
    main()
