"""
How fast SARCSE trains beside what people use today: sentences a second and peak memory of one job in four programs.

    python -m benchmarks.train_speed [--quick] [--output FILE]

- `sarcse`: this project's default;
- `simcse`: this project with `--pooler cls --reconstruction_weight 0`;
- `sentence_transformers`: its trainer with MultipleNegativesRankingLoss on pairs (s, s), cls pooling;
- `simcse_repository_method`: a plain loop after the SimCSE repository, each view padded with the batch, two flattened.

The same encoder, sentences, batches, length, precision and number of threads. Every program trains in a process of its
own and they take turns: a few steps of the first, of the second, ..., and from the start again.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.common import (
    MAX_SEQ_LENGTH,
    QUIET,
    SENTENCES,
    arguments_for,
    peak_mebibytes,
    print_table,
    speed_rows,
    speeds_in_turns,
    trainer_for,
    write_output,
)


TEMPERATURE, LEARNING_RATE = 0.05, 3e-5


class Turns(TrainerCallback):
    """Lets a Trainer run its steps in turns: waits for a message, takes so many steps, answers."""

    def __init__(self, connection: Connection, steps: int) -> None:
        self.connection, self.steps = connection, steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.steps == 0:
            self.connection.recv()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.steps == 0:
            self.connection.send("done")


def train_here(settings: argparse.Namespace, turns: Turns, flags: list[str]) -> None:
    fields = {"max_steps": settings.max_steps, "per_device_train_batch_size": settings.batch_size}
    fields |= {"contrastive_temperature": TEMPERATURE, "learning_rate": LEARNING_RATE}
    with trainer_for(settings, flags, **fields) as trainer:
        trainer.add_callback(turns)
        trainer.train()


def sarcse(settings: argparse.Namespace, turns: Turns) -> None:
    train_here(settings, turns, [])


def simcse(settings: argparse.Namespace, turns: Turns) -> None:
    train_here(settings, turns, ["--pooler=cls", "--reconstruction_weight=0"])


def read_sentences(settings: argparse.Namespace) -> list[str]:
    from sarcse.sentences import DataArguments, load_sentences

    arguments = DataArguments(train_file=settings.train_file, max_train_samples=SENTENCES)
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
    model = SentenceTransformer(
        modules=[encoder, Pooling(encoder.get_word_embedding_dimension(), "cls")], device="cpu"
    )
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
    for batch in loader:
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
        if state.global_step == settings.max_steps:
            break


PROGRAMS: list[Callable] = [sarcse, simcse, sentence_transformers, simcse_repository_method]


def work(program: Callable, settings: argparse.Namespace, connection: Connection) -> None:
    """A process of its own: trains in turns, then tells its peak memory in MiB."""
    torch.set_num_threads(settings.threads)
    program(settings, Turns(connection, settings.steps))
    connection.send(peak_mebibytes())


def take_turn(connection: Connection) -> None:
    """Returns when the process at the other end has taken its steps."""
    connection.send("go")
    connection.recv()


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """Median sentences a second and peak memory of every program."""
    context = multiprocessing.get_context("spawn")
    connections, processes = {}, []
    for program in PROGRAMS:
        connections[program.__name__], other = context.Pipe()
        processes.append(context.Process(target=work, args=(program, settings, other)))
        processes[-1].start()
        other.close()
    turns = {name: partial(take_turn, connection) for name, connection in connections.items()}
    speeds = speeds_in_turns(turns, settings.steps * settings.batch_size, settings.repeats)
    memory = {name: round(connection.recv()) for name, connection in connections.items()}
    for process in processes:
        process.join()
    return {
        "batch_size": settings.batch_size,
        "precision": "bf16" if settings.bf16 else "float32",
        "threads": settings.threads,
        "max_seq_length": MAX_SEQ_LENGTH,
        **speeds,
        "peak_mebibytes": memory,
    }


def main() -> None:
    parser = arguments_for(__doc__)
    parser.add_argument("--quick", action="store_true", help="Batch 64 in bf16 alone.")
    parser.add_argument("--repeats", type=int, default=5, help="Turns that count.")
    parser.add_argument("--sentences_a_turn", type=int, default=512)
    arguments = parser.parse_args()
    results = []
    for batch_size, bf16 in [(64, True)] if arguments.quick else [(64, False), (64, True), (512, False), (512, True)]:
        steps = max(2, arguments.sentences_a_turn // batch_size)
        fields = {"batch_size": batch_size, "bf16": bf16, "steps": steps, "max_steps": steps * (arguments.repeats + 1)}
        result = measure(argparse.Namespace(**vars(arguments), **fields))
        memory = ["peak memory, MiB", *(f"{value:,}" for value in result["peak_mebibytes"].values())]
        rows = [[*row, cell] for row, cell in zip(speed_rows(result), memory)]
        print_table(f"Batch {batch_size}, {result['precision']}", rows)
        results.append(result)
        write_output({"settings": results}, arguments.output)


if __name__ == "__main__":
    main()
