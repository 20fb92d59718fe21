"""
How well SARCSE uses a GPU: milliseconds a training step, utilisation of its arithmetic and peak memory, by way of
computing attention, with torch.compile and with the gradient cache.

    python benchmarks/gpu_speed.py [--shapes base large] [--batch_size 512] [--peak_teraflops X] [--output FILE]

The model is the default one on encoders of RoBERTa's shapes with random weights, the batch is random tokens without
padding, and the steps are those of `SarcseTrainer` in bf16: data, clipping and optimizer count too.

Model FLOPs utilisation is the arithmetic that a step needs over what the GPU could do in its time (PaLM, arXiv
2204.02311, appendix B). Needed are two FLOPs for each multiplication of the matrix products and convolutions in the
forward pass (`forward_flops`), and twice as many in the backward pass. What the gradient cache computes twice counts
once.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import RobertaConfig, TrainerCallback, default_data_collator
from transformers.utils import is_flash_attn_2_available


sys.path.insert(0, str(Path(__file__).parent.parent))
from configuration_sarcse import SarcseConfig  # noqa: E402
from modeling_sarcse import SarcseModel  # noqa: E402
from sarcse.arguments import SarcseTrainingArguments  # noqa: E402
from sarcse.trainer import SarcseTrainer  # noqa: E402


SHAPES = {
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096},
    "tiny": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
}
# Dense bf16 with float32 accumulation, from NVIDIA's data sheets; parts of a name, the longer before the shorter.
PEAK_TERAFLOPS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312}
# How the steps are computed; the gradient cache gets its number of rows in `main`.
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


def forward_flops(config: SarcseConfig, length: int, reconstructed: int) -> int:
    """
    FLOPs of the forward pass of one row of `length` tokens without padding, two for each multiplication, where the row
    is `reconstructed` (1) or not (0):

    - the encoder, a layer: projections 4 d^2 and feed-forward 2 d f each token, attention 2 length d each token;
    - TextCNN encoder: sum(k) d c each position; the integration's mean window w K c each position, itself w K c d;
    - decoder, T positions: transposed convolution d K c decoder_length each row; TextCNN sum(k) K c c and output K c d
      each position.

    Positions that hold special tokens are computed like others.
    """
    encoder, d, c = config.encoder_config, config.hidden_size, config.channels
    layer = 4 * d * d + 2 * d * encoder.intermediate_size + 2 * length * d  # a token
    widths, scales = sum(config.kernel_sizes), len(config.kernel_sizes) * c
    decoded = min(length, config.decoder_length)
    autoencoder = (
        length * (widths * d * c + config.integration_kernel_size * scales)
        + config.integration_kernel_size * scales * d
        + reconstructed * (d * scales * config.decoder_length + decoded * (widths * scales * c + scales * d))
    )
    return 2 * (length * encoder.num_hidden_layers * layer + autoencoder)


class StepTimes(TrainerCallback):
    """Seconds from the beginning of one step to the beginning of the next, the first ones left out."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.starts.append(time.perf_counter())

    def seconds(self) -> float:
        starts = self.starts[WARM_UP:]
        return statistics.median(after - before for before, after in zip(starts, starts[1:]))


def train(shape: str, variant: dict[str, Any], batch_size: int, length: int, steps: int) -> dict[str, Any]:
    """Median seconds a step and peak memory, in a process of its own."""
    config = sarcse_config(shape)
    model = SarcseModel._from_config(config, attn_implementation=variant["attention"])
    total_steps = WARM_UP + 1 + steps
    ids = torch.randint(3, config.encoder_config.vocab_size, (batch_size * total_steps, length))
    ids[:, 0], ids[:, -1] = 0, 2
    columns = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        arguments = SarcseTrainingArguments(
            output_dir=folder,
            bf16=True,
            per_device_train_batch_size=batch_size,
            torch_compile=variant["compile"],
            gradient_cache_mini_batch_size=variant["gradient_cache_mini_batch_size"],
            eval_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
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
    return {"seconds": times.seconds(), "peak_gibibytes": peak}


def peak_teraflops() -> float | None:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for part, peak in PEAK_TERAFLOPS.items() if part in name), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
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
    print("| shape | variant | ms a step | utilisation | peak, GiB | 1,000,000 sentences |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for shape in arguments.shapes:
        # Two views of each sentence, of which one is reconstructed, and a backward pass of twice the forward pass.
        views = [forward_flops(sarcse_config(shape), arguments.length, reconstructed) for reconstructed in (1, 0)]
        needed = 3 * arguments.batch_size * sum(views)
        for name in arguments.variants:
            variant = dict(VARIANTS[name])
            if name == "gradient_cache":
                variant["gradient_cache_mini_batch_size"] = arguments.gradient_cache_mini_batch_size
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                job = process.submit(train, shape, variant, arguments.batch_size, arguments.length, arguments.steps)
                row = {"shape": shape, "variant": name, "batch_size": arguments.batch_size, **variant, **job.result()}
            row["utilisation"] = needed / row["seconds"] / (peak * 1e12) if peak else None
            row["minutes_a_million"] = 1e6 / arguments.batch_size * row["seconds"] / 60
            rows.append(row)
            utilisation = format(row["utilisation"], ".1%") if peak else "unknown"
            memory = format(row["peak_gibibytes"], ".1f") if row["peak_gibibytes"] else "unknown"
            print(
                f"| {shape} | {name} | {1000 * row['seconds']:.1f} | {utilisation} | {memory} "
                f"| {row['minutes_a_million']:.1f} min |",
                flush=True,
            )
    if arguments.output:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        result = {"device": device, "peak_teraflops": peak, "torch": torch.__version__, "rows": rows}
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
