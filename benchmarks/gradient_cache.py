"""
What --gradient_cache_mini_batch_size saves and costs: one training step of the same batch with and without it.

    python benchmarks/gradient_cache.py [--batch_size 512] [--mini_batch_sizes 128 32] [train.py's flags]

Each step runs in a process of its own, without dropout, so that the gradients can be compared. Peak memory is what the
step adds: on a GPU to what is allocated before it, on a CPU to the resident memory of the process.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import torch


sys.path.insert(0, str(Path(__file__).parent.parent))
from train import DEMO_RECIPE, build_trainer, parse_arguments  # noqa: E402


MEBIBYTE = 2**20


def one_step(flags: list[str], gradients: str) -> tuple[float, float]:
    """MiB that a training step adds at its peak, and its seconds; its gradients are written to a file."""
    trainer, _, _ = build_trainer(*parse_arguments([str(DEMO_RECIPE), *flags]))
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
    peak = torch.cuda.max_memory_allocated() if cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.save(torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad]).cpu(), gradients)
    return (peak - before) / MEBIBYTE, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--mini_batch_sizes", type=int, nargs="+", default=[128, 32])
    parser.add_argument("--output_dir", type=Path, default=Path("output/gradient-cache"))
    arguments, flags = parser.parse_known_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    flags += [f"--per_device_train_batch_size={arguments.batch_size}", f"--output_dir={arguments.output_dir}"]
    flags += [f"--max_train_samples={arguments.batch_size}", "--eval_strategy=no", "--max_grad_norm=0"]
    rows, plain = [], None
    for size in (None, *arguments.mini_batch_sizes):
        path = arguments.output_dir / "gradients.pt"
        cached = [] if size is None else [f"--gradient_cache_mini_batch_size={size}"]
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            memory, seconds = process.submit(one_step, flags + cached, str(path)).result()
        gradients = torch.load(path)
        plain = gradients if plain is None else plain
        difference = (gradients - plain).norm() / plain.norm()
        rows.append(f"| {size or 'the whole batch':>15} | {memory:9.0f} | {seconds:7.2f} | {difference:19.1e} |")
    print(f"\nOne step of {arguments.batch_size} sentences:\n")
    print("| rows at a time  | peak, MiB | seconds | gradients differ by |")
    print("\n".join(["| --------------: | --------: | ------: | ------------------: |", *rows]))


if __name__ == "__main__":
    main()
