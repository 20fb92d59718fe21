"""
Training speed of SARCSE compared with common alternatives: sentences per second, utilisation of the processor and peak
memory of the same job in five programs.

    python -m benchmarks.train_speed [--encoders mini base] [--batch_sizes 64 512] [--precisions bf16]
        [--programs sarcse simcse] [--output FILE]

- `sarcse`: this project's default, one encoder pass for both views;
- `sarcse_two_passes`: this project with `--view_dropout 0`;
- `simcse`: this project with `--pooler cls --reconstruction_weight 0`;
- `sentence_transformers`: its trainer with MultipleNegativesRankingLoss on pairs (s, s), cls pooling;
- `simcse_repository_method`: a plain loop like the SimCSE repository's, with both views in one padded batch.

Encoder, sentences, batch size, length, precision and number of threads are the same. `mini` is `roberta-mini-wiki`;
`base` has RoBERTa-base's shape with random weights. At a batch of 64, three programs with `base` fit into 24 GiB of
memory; five do not. Every program trains in a separate process, and they take turns. A turn is an epoch over the same
few sentences, so that all programs see sentences of the same length. The first turn is a warm-up.

Utilisation is the arithmetic of a turn, divided by what a matrix product of the encoder's own shape does in the same
time; that is measured in a separate turn. The arithmetic is the matrix products and convolutions that torch's
FlopCounterMode counts in the first turn, including those on padding. Attention's products, below 1% here, are counted
only where they are not fused into one kernel.
"""

import argparse
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from benchmarks.common import (
    MAX_SEQ_LENGTH,
    QUIET,
    arguments_for,
    peak_mebibytes,
    print_table,
    random_encoder,
    speeds_in_turns,
    trainer_for,
    write_output,
)


TEMPERATURE, LEARNING_RATE = 0.05, 3e-5
SARCSE, PEAK = "sarcse", "peak"


class Turns(TrainerCallback):
    """
    Makes a training run one epoch at a time: waits for a message, takes the steps, answers with their FLOPs. It also
    waits after the last epoch, so that the end of one training does not slow down another.
    """

    def __init__(self, connection: Connection, settings: argparse.Namespace) -> None:
        self.connection, self.steps, self.last = connection, settings.steps, settings.max_steps
        self.counter = FlopCounterMode(display=False)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.steps == 0:
            self.connection.recv()
        if state.global_step == 0:
            self.counter.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.steps:
            self.counter.__exit__(None, None, None)
        if state.global_step % self.steps == 0:
            self.connection.send(self.counter.get_total_flops())
        if state.global_step == self.last:
            self.connection.recv()


def train_here(settings: argparse.Namespace, turns: Turns, flags: list[str]) -> None:
    fields = {"max_steps": settings.max_steps, "per_device_train_batch_size": settings.batch_size}
    fields |= {"contrastive_temperature": TEMPERATURE, "learning_rate": LEARNING_RATE}
    with trainer_for(settings, flags, max_train_samples=settings.sentences, **fields) as trainer:
        trainer.add_callback(turns)
        trainer.train()


def sarcse(settings: argparse.Namespace, turns: Turns) -> None:
    train_here(settings, turns, [])


def sarcse_two_passes(settings: argparse.Namespace, turns: Turns) -> None:
    train_here(settings, turns, ["--view_dropout=0"])


def simcse(settings: argparse.Namespace, turns: Turns) -> None:
    train_here(settings, turns, ["--pooler=cls", "--reconstruction_weight=0"])


def read_sentences(settings: argparse.Namespace) -> list[str]:
    from sarcse.data.sentences import load_sentences
    from sarcse.options import DataArguments

    arguments = DataArguments(train_file=settings.train_file, max_train_samples=settings.sentences)
    return load_sentences(arguments)["text"][:]


def sentence_transformers(settings: argparse.Namespace, turns: Turns) -> None:
    import datasets
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from sentence_transformers.models import Pooling, Transformer

    encoder = Transformer(settings.model, max_seq_length=MAX_SEQ_LENGTH)
    model = SentenceTransformer(modules=[encoder, Pooling(encoder.get_embedding_dimension(), "cls")], device="cpu")
    sentences = read_sentences(settings)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=settings.batch_size,
                max_steps=settings.max_steps,
                learning_rate=LEARNING_RATE,
                bf16=settings.bf16,
                dataloader_drop_last=True,
                dataloader_pin_memory=False,
                use_cpu=True,
                **QUIET,
            ),
            train_dataset=datasets.Dataset.from_dict({"anchor": sentences, "positive": sentences}),
            loss=MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE),
            callbacks=[turns],
        )
        trainer.train()


def simcse_repository_method(settings: argparse.Namespace, turns: Turns) -> None:
    from transformers import AutoModel, AutoTokenizer, get_linear_schedule_with_warmup

    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    encoder = AutoModel.from_pretrained(settings.model, add_pooling_layer=False, dtype=torch.float32).train()
    projection = torch.nn.Linear(encoder.config.hidden_size, encoder.config.hidden_size)
    sentences = read_sentences(settings)
    ids = tokenizer(sentences, truncation=True, max_length=MAX_SEQ_LENGTH)["input_ids"]
    parameters = [*encoder.parameters(), *projection.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    scheduler = get_linear_schedule_with_warmup(optimizer, 0, settings.max_steps)

    def collate(rows: list[list[int]]) -> dict[str, torch.Tensor]:
        return tokenizer.pad({"input_ids": [row for row in rows for _ in range(2)]}, return_tensors="pt")

    loader = torch.utils.data.DataLoader(
        ids, batch_size=settings.batch_size, shuffle=True, drop_last=True, collate_fn=collate
    )
    state = argparse.Namespace(global_step=0)
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    for batch in itertools.islice(epochs, settings.max_steps):
        turns.on_step_begin(None, state, None)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            hidden = encoder(**batch).last_hidden_state[:, 0]  # (2B, d)
            first, second = torch.tanh(projection(hidden)).float().unflatten(0, (-1, 2)).unbind(1)  # two of (B, d)
        similarities = torch.cosine_similarity(first.unsqueeze(1), second.unsqueeze(0), dim=-1) / TEMPERATURE  # (B, B)
        torch.nn.functional.cross_entropy(similarities, torch.arange(len(first))).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        state.global_step += 1
        turns.on_step_end(None, state, None)


def peak(settings: argparse.Namespace, turns: Turns) -> None:
    """Not a training: runs the feed-forward layers' first matrix product, on both views, for a second per turn."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(settings.model)
    dtype = torch.bfloat16 if settings.bf16 else torch.float32
    vectors = torch.randn(2 * settings.batch_size * MAX_SEQ_LENGTH, config.hidden_size, dtype=dtype)  # (2B L, d)
    weight = torch.randn(config.intermediate_size, config.hidden_size, dtype=dtype)  # (4d, d)
    flops = 2 * vectors.shape[0] * weight.numel()
    for _ in range(settings.repeats + 1):
        turns.connection.recv()
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < 1:
            torch.nn.functional.linear(vectors, weight)
            done += flops
        turns.connection.send(done / (time.perf_counter() - start))
    turns.connection.recv()


PROGRAMS: dict[str, Callable] = {
    program.__name__: program
    for program in (sarcse, sarcse_two_passes, simcse, sentence_transformers, simcse_repository_method)
}


def work(program: Callable, settings: argparse.Namespace, connection: Connection) -> None:
    """Runs in a separate process: trains in turns, then sends its peak memory in MiB."""
    torch.set_num_threads(settings.threads)
    program(settings, Turns(connection, settings))
    connection.send(peak_mebibytes())


def take_turn(connection: Connection, answers: list[float]) -> None:
    """Let the process at the other end take its turn; appends its answer to `answers`."""
    connection.send("go")
    answers.append(connection.recv())


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """Median sentences per second, utilisation and peak memory of every program."""
    context = multiprocessing.get_context("spawn")
    connections, processes = {}, []
    for name in (*settings.programs, PEAK):
        connections[name], other = context.Pipe()
        processes.append(context.Process(target=work, args=(PROGRAMS.get(name, peak), settings, other)))
        processes[-1].start()
        other.close()
    answers: dict[str, list[float]] = {name: [] for name in connections}
    turns = {name: partial(take_turn, connection, answers[name]) for name, connection in connections.items()}
    speeds = speeds_in_turns(turns, settings.sentences, settings.repeats)
    for connection in connections.values():
        connection.send("end")
    memory = {name: round(connection.recv()) for name, connection in connections.items()}
    for process in processes:
        process.join()
    for figures in (*speeds.values(), memory):
        del figures[PEAK]
    highest = max(answers[PEAK])  # FLOP/s; other load on the machine can only lower it
    flops = {name: answers[name][0] / settings.sentences for name in memory}
    medians = speeds["median_sentences_per_second"]
    return {
        "encoder": settings.encoder,
        "batch_size": settings.batch_size,
        "precision": "bf16" if settings.bf16 else "float32",
        "threads": settings.threads,
        "max_seq_length": MAX_SEQ_LENGTH,
        **speeds,
        "gigaflops_per_sentence": {name: value / 1e9 for name, value in flops.items()},
        "peak_gigaflops_per_second": highest / 1e9,
        "utilisation": {name: flops[name] * medians[name] / highest for name in medians},
        "peak_mebibytes": memory,
    }


def table(result: dict[str, Any]) -> list[list[str]]:
    medians = result["median_sentences_per_second"]
    rows = [
        [
            name,
            f"{median:,.1f}",
            f"{medians[SARCSE] / median:.2f}" if SARCSE in medians else "",
            f"{result['gigaflops_per_sentence'][name]:.2f}",
            f"{result['utilisation'][name]:.0%}",
            f"{result['peak_mebibytes'][name]:,}",
        ]
        for name, median in medians.items()
    ]
    header = ["program", "sentences/s", "sarcse over it", "GFLOP a sentence", "utilisation", "peak memory, MiB"]
    return [header, *rows]


def main() -> None:
    parser = arguments_for(__doc__)
    parser.add_argument("--encoders", nargs="+", choices=["mini", "base"], default=["mini", "base"])
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[64, 512])
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bf16"], default=["float32", "bf16"])
    parser.add_argument("--programs", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument("--repeats", type=int, default=5, help="Measured turns, after the warm-up.")
    parser.add_argument("--sentences", type=int, default=512, help="Sentences per turn; at least one batch.")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        models = {"mini": arguments.model}
        if "base" in arguments.encoders:
            models["base"] = random_encoder("base", arguments.model, folder)
        rows = itertools.product(arguments.encoders, arguments.batch_sizes, arguments.precisions)
        for encoder, batch_size, precision in rows:
            steps = max(1, arguments.sentences // batch_size)
            fields = {"encoder": encoder, "batch_size": batch_size, "bf16": precision == "bf16", "steps": steps}
            fields |= {"model": models[encoder], "sentences": steps * batch_size}
            fields |= {"max_steps": steps * (arguments.repeats + 1)}
            results.append(measure(argparse.Namespace(**{**vars(arguments), **fields})))
            print_table(f"{encoder}, batch {batch_size}, {precision}", table(results[-1]))
            write_output({"settings": results}, arguments.output)


if __name__ == "__main__":
    main()
