"""
What --gradient_cache_mini_batch_size saves and costs: one training step on the same batch with and without it.

    python -m benchmarks.gradient_cache [--batch_size 512] [--mini_batch_sizes 128 32] [train.py's flags]

Each step runs in a new process, without dropout, so that the gradients can be compared. Peak memory is what the step
adds: on a GPU to the allocated memory, on a CPU to the resident memory of the process.
"""

import time
from pathlib import Path

import psutil
import torch

from benchmarks.common import MEBIBYTE, in_new_processes, parser_for, peak_mebibytes, print_table
from sarcse.training.build import build_trainer
from sarcse.training.parsing import parse_arguments
from train import DEMO_RECIPE


def one_step(flags: list[str], gradients: str) -> tuple[float, float]:
    """Peak MiB that a training step adds, and its seconds; writes its gradients to a file."""
    trainer = build_trainer(*parse_arguments([str(DEMO_RECIPE), *flags]))
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer.current_gradient_accumulation_steps = 1
    trainer.create_optimizer()
    batch = next(iter(trainer.get_train_dataloader()))
    cuda = trainer.args.device.type == "cuda"
    before = torch.cuda.memory_allocated() if cuda else psutil.Process().memory_info().rss
    start = time.perf_counter()
    trainer.training_step(trainer.model, batch).item()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / MEBIBYTE if cuda else peak_mebibytes()
    torch.save(torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad]).cpu(), gradients)
    return peak - before / MEBIBYTE, seconds


def main() -> None:
    parser = parser_for(__doc__)
    parser.epilog = "All other flags are train.py's."
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--mini_batch_sizes", type=int, nargs="+", default=[128, 32])
    parser.add_argument("--output_dir", type=Path, default=Path("output/gradient-cache"))
    arguments, flags = parser.parse_known_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    flags += [f"--per_device_train_batch_size={arguments.batch_size}", f"--output_dir={arguments.output_dir}"]
    flags += [f"--max_train_samples={arguments.batch_size}", "--eval_strategy=no", "--max_grad_norm=0"]
    flags += ["--view_dropout=0"]  # two passes, whose only randomness is the dropout that `one_step` turns off
    rows, plain = [["rows at a time", "peak, MiB", "seconds", "gradients differ by"]], None
    for size in (None, *arguments.mini_batch_sizes):
        path = arguments.output_dir / "gradients.pt"
        cached = [] if size is None else [f"--gradient_cache_mini_batch_size={size}"]
        memory, seconds = in_new_processes(one_step, (flags + cached, str(path)))
        gradients = torch.load(path)
        plain = gradients if plain is None else plain
        difference = (gradients - plain).norm() / plain.norm()
        rows.append([str(size or "the whole batch"), f"{memory:,.0f}", f"{seconds:.2f}", f"{difference:.1e}"])
    print_table(f"One step of {arguments.batch_size} sentences", rows)


if __name__ == "__main__":
    main()
