"""
How well SARCSE uses a GPU: milliseconds a training step, utilisation of its arithmetic and peak memory, by way of
computing attention, with torch.compile and with the gradient cache.

    python -m benchmarks.gpu_speed [--shapes base large] [--batch_size 512] [--peak_teraflops X] [--output FILE]

The model is the default one on encoders of RoBERTa's shapes with random weights, the batch is random tokens without
padding, and the steps are those of `SarcseTrainer` in bf16: data, clipping and optimizer count too.

Model FLOPs utilisation is the arithmetic that a step needs over what the GPU could do in its time (PaLM, arXiv
2204.02311, appendix B). Needed are the matrix products and convolutions of the forward pass (`forward_flops`), and
twice as many FLOPs in the backward pass. What the gradient cache computes twice counts once.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import datasets
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import RobertaConfig, default_data_collator
from transformers.utils import is_flash_attn_2_available

from benchmarks.common import QUIET, StepTimes, in_new_processes, parser_for, print_table, write_output
from configuration_sarcse import SarcseConfig
from modeling_sarcse import SarcseModel
from sarcse.arguments import SarcseTrainingArguments
from sarcse.trainer import SarcseTrainer


SHAPES = {
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096},
    "tiny": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
}
# Dense bf16 with float32 accumulation, from NVIDIA's data sheets; parts of a name, the longer before the shorter.
PEAK_TERAFLOPS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312}
# How the steps are computed; the gradient cache gets its number of rows in `measure`.
PLAIN = {"attention": "sdpa", "compile": False, "gradient_cache_mini_batch_size": None}
VARIANTS: dict[str, dict[str, Any]] = {
    "eager": {**PLAIN, "attention": "eager"},
    "sdpa": PLAIN,
    "flash": {**PLAIN, "attention": "flash_attention_2"},
    "compile": {**PLAIN, "compile": True},
    "gradient_cache": PLAIN,
}
WARM_UP = 5


def sarcse_config(shape: str) -> SarcseConfig:
    encoder = RobertaConfig(
        **SHAPES[shape], vocab_size=50265, max_position_embeddings=514, bos_token_id=0, pad_token_id=1, eos_token_id=2
    )
    return SarcseConfig(encoder_config=encoder, special_token_ids=[0, 1, 2], pad_token_id=1)


def forward_flops(config: SarcseConfig, rows: int, length: int, reconstructed_rows: int) -> int:
    """
    FLOPs of the forward pass of so many rows of `length` tokens without padding, as torch counts them: two for each
    multiplication of its matrix products and convolutions.
    """
    # The tensors are shapes without numbers: a large model costs no memory. Eager attention is two matrix products;
    # SDPA is one operation, which the counter does not know on every device.
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        model = SarcseModel._from_config(config, attn_implementation="eager")
        ids = torch.ones(rows, length, dtype=torch.long)
        model(ids, output_reconstruction=reconstructed_rows > 0, reconstructed_rows=reconstructed_rows)
    return counter.get_total_flops()


def train(shape: str, variant: dict[str, Any], batch_size: int, length: int, steps: int) -> dict[str, Any]:
    """Median seconds a step and peak memory, in a process of its own."""
    config = sarcse_config(shape)
    model = SarcseModel._from_config(config, attn_implementation=variant["attention"])
    ids = torch.randint(3, config.encoder_config.vocab_size, (batch_size * (WARM_UP + steps), length))
    ids[:, 0], ids[:, -1] = 0, 2
    columns = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
    times = StepTimes(WARM_UP)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SarcseTrainingArguments(
            output_dir=folder,
            bf16=True,
            per_device_train_batch_size=batch_size,
            torch_compile=variant["compile"],
            gradient_cache_mini_batch_size=variant["gradient_cache_mini_batch_size"],
            **QUIET,
        )
        SarcseTrainer(
            model=model,
            args=arguments,
            train_dataset=datasets.Dataset.from_dict(columns),
            data_collator=default_data_collator,
            token_weights=torch.ones(config.encoder_config.vocab_size),
            callbacks=[times],
        ).train()
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return {"seconds": statistics.median(times.seconds()), "peak_gibibytes": peak}


def peak_teraflops() -> float | None:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for part, peak in PEAK_TERAFLOPS.items() if part in name), None)


def measure(shape: str, name: str, arguments: argparse.Namespace, peak: float | None) -> dict[str, Any]:
    """All figures of one shape computed in one way; `peak` is that of the GPU in TFLOPS."""
    batch_size, variant = arguments.batch_size, dict(VARIANTS[name])
    if name == "gradient_cache":
        variant["gradient_cache_mini_batch_size"] = arguments.gradient_cache_mini_batch_size
    call = (shape, variant, batch_size, arguments.length, arguments.steps)
    row = {"shape": shape, "variant": name, "batch_size": batch_size, **variant, **in_new_processes(train, call)}
    # Two views of each sentence, of which one is reconstructed, and a backward pass of twice the forward pass.
    needed = 3 * forward_flops(sarcse_config(shape), 2 * batch_size, arguments.length, reconstructed_rows=batch_size)
    row["utilisation"] = needed / row["seconds"] / (peak * 1e12) if peak else None
    row["minutes_a_million"] = 1e6 / batch_size * row["seconds"] / 60
    return row


def cells(row: dict[str, Any]) -> list[str]:
    return [
        row["shape"],
        row["variant"],
        f"{1000 * row['seconds']:,.1f}",
        "unknown" if row["utilisation"] is None else f"{row['utilisation']:.1%}",
        "unknown" if row["peak_gibibytes"] is None else f"{row['peak_gibibytes']:.1f}",
        f"{row['minutes_a_million']:,.1f} min",
    ]


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["base", "large"])
    installed = [name for name in VARIANTS if name != "flash" or is_flash_attn_2_available()]
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=installed)
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20, help="Steps that are timed.")
    parser.add_argument("--gradient_cache_mini_batch_size", type=int, default=256)
    parser.add_argument("--peak_teraflops", type=float, help="Of the GPU in bf16, if it is not a known one.")
    parser.add_argument("--output", type=Path, help="Where to write all numbers, as JSON.")
    arguments = parser.parse_args()
    peak = arguments.peak_teraflops or peak_teraflops()
    rows = []
    for shape in arguments.shapes:
        for name in arguments.variants:
            rows.append(measure(shape, name, arguments, peak))
            print(rows[-1], flush=True)  # before the table: the next one may not fit into the GPU's memory
    header = ["shape", "variant", "ms a step", "utilisation", "peak, GiB", "1,000,000 sentences"]
    print_table(f"Steps of {arguments.batch_size} sentences", [header, *map(cells, rows)])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    result = {"device": device, "peak_teraflops": peak, "torch": torch.__version__, "rows": rows}
    write_output(result, arguments.output)


if __name__ == "__main__":
    main()
