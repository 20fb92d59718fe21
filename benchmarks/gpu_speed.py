"""
How well SARCSE uses a GPU: milliseconds per training step, FLOPs utilisation and peak memory. It compares one and two
encoder passes, ways to compute attention, torch.compile and the gradient cache.

    python -m benchmarks.gpu_speed [--shapes base large] [--batch_size 512] [--output FILE]

It needs torch and transformers, but no network and no data: the encoders have RoBERTa's shapes with random weights,
and the batches are random tokens without padding. The steps run in a plain bf16 loop with
`sarcse.training.losses`, clipping and a fused AdamW. `sentence_transformers`, if installed, runs its model and
MultipleNegativesRankingLoss in the same loop.

Model FLOPs utilisation is the arithmetic that a step needs, divided by what the GPU could do in that time (PaLM, arXiv
2204.02311, appendix B). A step needs the matrix products and convolutions of the forward pass (`forward_flops`), and
twice as many FLOPs in the backward pass. What the gradient cache computes twice counts once. What the GPU could do is
measured with a product of large square matrices.
"""

import argparse
import gc
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import is_flash_attn_2_available

from benchmarks.common import PROJECT, SHAPES, parser_for, random_encoder, roberta_config, write_output
from configuration_sarcse import SarcseConfig
from modeling_sarcse import SarcseModel
from sarcse.training.gradient_cache import GradientCache
from sarcse.training.losses import info_nce, share_of_total, two_views, weighted_reconstruction
from sarcse.training.views import dropping


VIEW_DROPOUT, TEMPERATURE = 0.05, 0.05  # neither affects the speed
PASSES = {"two passes": None, "one pass": VIEW_DROPOUT}
WAYS = ["sdpa", "flash", "compile", "gradient_cache"]
SENTENCE_TRANSFORMERS = "sentence_transformers"
WARM_UP = 5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Step = Callable[[torch.Tensor], None]  # forward and backward of a batch of ids (B, L)


def sarcse_config(shape: str) -> SarcseConfig:
    return SarcseConfig(encoder_config=roberta_config(shape), special_token_ids=[0, 1, 2], pad_token_id=1)


def forward_flops(
    config: SarcseConfig, rows: int, length: int, reconstructed_rows: int, view_dropout: float | None = None
) -> int:
    """
    FLOPs of the forward pass for `rows` rows of `length` tokens without padding, as torch counts them: two for each
    multiplication in matrix products and convolutions.
    """
    # Fake tensors have shapes but no data, so a large model needs no memory. Eager attention is two matrix products;
    # SDPA is one operation, which the counter does not support on every device.
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        model = SarcseModel._from_config(config, attn_implementation="eager")
        ids = torch.ones(rows, length, dtype=torch.long)
        reconstruct = {"output_reconstruction": reconstructed_rows > 0, "reconstructed_rows": reconstructed_rows}
        model(ids, **reconstruct, views=dropping(view_dropout))
    return counter.get_total_flops()


# --- Steps -----------------------------------------------------------------------------------------------------------


def autocast() -> AbstractContextManager[None]:
    return torch.autocast(DEVICE, torch.bfloat16)


def sarcse_step(shape: str, way: str, view_dropout: float | None, size: int) -> tuple[torch.nn.Module, Step]:
    """The model, and a step of it; `size` is the gradient cache's number of rows."""
    config = sarcse_config(shape)
    with torch.device(DEVICE):
        attention = "flash_attention_2" if way == "flash" else "sdpa"
        model = SarcseModel._from_config(config, attn_implementation=attention).train()
        token_weights = torch.ones(config.encoder_config.vocab_size)
    if way == "compile":
        model.compile()
    step = partial(cached_step, size=size) if way == "gradient_cache" else whole_step
    return model, partial(step, model, token_weights, view_dropout)


def views_of(ids: torch.Tensor, view_dropout: float | None) -> dict[str, torch.Tensor]:
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return two_views(inputs) if view_dropout is None else inputs


def whole_step(model: SarcseModel, token_weights: torch.Tensor, view_dropout: float | None, ids: torch.Tensor) -> None:
    options = {"output_reconstruction": True, "reconstructed_rows": len(ids), "views": dropping(view_dropout)}
    with autocast():
        outputs = model(**views_of(ids, view_dropout), **options)
        contrast = info_nce(*outputs.pooler_output.chunk(2), temperature=TEMPERATURE)
        loss = contrast + weighted_reconstruction(outputs, token_weights)
    loss.backward()


def cached_step(
    model: SarcseModel, token_weights: torch.Tensor, view_dropout: float | None, ids: torch.Tensor, size: int
) -> None:
    cache = GradientCache(model, views_of(ids, view_dropout), size, len(ids), view_dropout, model.pooled_vectors)
    total_weight = share_of_total(token_weights[ids[:, 1:-1]].sum())  # without the special tokens at both ends
    with autocast():
        embeddings = cache.embed(see=lambda outputs: None)  # (2B, d)
        contrast = info_nce(*embeddings.chunk(2), temperature=TEMPERATURE)
        (gradient,) = torch.autograd.grad(contrast, embeddings)
        for outputs, value in cache.replay(gradient, nullcontext):
            if outputs.reconstruction is not None:
                value = value + weighted_reconstruction(outputs, token_weights, total_weight)
            value.backward()


def sentence_transformers_step(shape: str) -> tuple[torch.nn.Module, Step]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from sentence_transformers.models import Pooling, Transformer

    with tempfile.TemporaryDirectory() as folder:
        encoder = Transformer(random_encoder(shape, str(PROJECT / "demo" / "encoder"), folder))
    pooling = Pooling(encoder.get_embedding_dimension(), "cls")
    model = SentenceTransformer(modules=[encoder, pooling], device=DEVICE).train()
    loss = MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)

    def step(ids: torch.Tensor) -> None:
        views = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for _ in range(2)]
        with autocast():
            value = loss(views, None)
        value.backward()

    return model, step


# --- Timing ----------------------------------------------------------------------------------------------------------


def synchronized_time() -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measured_peak() -> float:
    """FLOP/s of a product of two square matrices in bf16, the best of five."""
    size = 8192 if DEVICE == "cuda" else 512
    left, right = torch.randn(2, size, size, device=DEVICE, dtype=torch.bfloat16)
    left @ right
    best = 0.0
    for _ in range(5):
        start = synchronized_time()
        for _ in range(10):
            left @ right
        best = max(best, 10 * 2 * size**3 / (synchronized_time() - start))
    return best


def train(model: torch.nn.Module, step: Step, vocabulary: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Median seconds a step and peak memory."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5, fused=True)
    seconds = []
    for _ in range(WARM_UP + arguments.steps):
        start = synchronized_time()
        ids = torch.randint(3, vocabulary, (arguments.batch_size, arguments.length), device=DEVICE)
        ids[:, 0], ids[:, -1] = 0, 2
        step(ids)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(synchronized_time() - start)
    peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else None
    return {"seconds": statistics.median(seconds[WARM_UP:]), "peak_gibibytes": peak}


def measure(shape: str, way: str, passes: str, arguments: argparse.Namespace, peak: float) -> dict[str, Any]:
    """All figures of one shape computed in one way; `peak` is the GPU's, in FLOP/s."""
    gc.collect()  # frees the previous model
    torch.compiler.reset()
    config, batch_size, view_dropout = sarcse_config(shape), arguments.batch_size, PASSES[passes]
    row = {"shape": shape, "way": way, "passes": passes, "batch_size": batch_size}
    try:
        if way == SENTENCE_TRANSFORMERS:
            model, step = sentence_transformers_step(shape)
        else:
            model, step = sarcse_step(shape, way, view_dropout, arguments.gradient_cache_mini_batch_size)
        row |= train(model, step, config.encoder_config.vocab_size, arguments)
    except torch.OutOfMemoryError:
        return {**row, "error": "out of memory"}
    # Only one of the two views is reconstructed. A backward pass needs twice the FLOPs of the forward pass.
    rows, reconstructed = batch_size * (2 if view_dropout is None else 1), batch_size
    if way == SENTENCE_TRANSFORMERS:
        config, reconstructed = SarcseConfig(encoder_config=config.encoder_config, pooler="cls"), 0
    needed = 3 * forward_flops(config, rows, arguments.length, reconstructed, view_dropout)
    row["utilisation"] = needed / row["seconds"] / peak
    row["minutes_a_million"] = 1e6 / batch_size * row["seconds"] / 60
    return row


def cells(row: dict[str, Any]) -> list[str]:
    name = [row["shape"], row["way"], row["passes"]]
    if "error" in row:
        return [*name, row["error"], "", "", ""]
    return [
        *name,
        f"{1000 * row['seconds']:,.1f}",
        f"{row['utilisation']:.1%}",
        "unknown" if row["peak_gibibytes"] is None else f"{row['peak_gibibytes']:.1f}",
        f"{row['minutes_a_million']:,.1f} min",
    ]


def print_row(row: list[str]) -> None:
    """Print a row of a Markdown table at once: the next one may take minutes."""
    print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["base", "large"])
    ways = [way for way in WAYS if way != "flash" or is_flash_attn_2_available()]
    ways += [SENTENCE_TRANSFORMERS] if find_spec(SENTENCE_TRANSFORMERS) else []
    parser.add_argument("--ways", nargs="+", choices=[*WAYS, SENTENCE_TRANSFORMERS], default=ways)
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20, help="Steps that are timed.")
    parser.add_argument("--gradient_cache_mini_batch_size", type=int, default=256)
    parser.add_argument("--output", type=Path, help="Where to write all numbers, as JSON.")
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision("high")  # for operations that autocast leaves in float32
    peak = measured_peak()
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    print(f"{device}: {peak / 1e12:,.1f} TFLOP/s in bf16. Steps of {arguments.batch_size} sentences:\n")
    print_row(["shape", "way", "passes", "ms a step", "utilisation", "peak, GiB", "1,000,000 sentences"])
    print_row(["---"] * 3 + ["---:"] * 4)
    result = {"device": device, "peak_teraflops": peak / 1e12, "torch": torch.__version__, "rows": []}
    for shape, way, passes in itertools.product(arguments.shapes, arguments.ways, PASSES):
        if way == SENTENCE_TRANSFORMERS and PASSES[passes] is not None:
            continue  # it always makes two passes
        result["rows"].append(measure(shape, way, passes, arguments, peak))
        print_row(cells(result["rows"][-1]))
        write_output(result, arguments.output)  # written after each row, so that an interrupted run is not lost


if __name__ == "__main__":
    main()
