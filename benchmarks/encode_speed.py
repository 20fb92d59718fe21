"""
How fast sentences are encoded: sentences a second of one SARCSE folder in this project's loop and in
sentence-transformers' `encode`, beside the plain encoder under mean pooling, which is the ceiling.

    python benchmarks/encode_speed.py [--output FILE]

Two kinds of sentences: those of wiki500k, and the distinct ones of the STS pairs, which are shorter. The same batch
size, precision (float32) and number of threads; all take turns, and the first turn, which warms up, does not count.
Speed does not depend on the weights, so the SARCSE folder has fresh ones.
"""

import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from common import SHARED, arguments_for
from sentence_transformers import SentenceTransformer

from model_card.release import write_sentence_transformers_files
from sarcse.arguments import ModelArguments
from sarcse.embedding import Embed, encode
from sarcse.loading import load_model
from sarcse.sentences import DataArguments, load_sentences
from sarcse.sts import load_sts
from train import build_model


def programs(encoder: str, batch_size: int, folder: str) -> dict[str, Embed]:
    model, tokenizer = build_model(ModelArguments(model_name_or_path=encoder))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_sentence_transformers_files(Path(folder))
    by_sentence_transformers = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    return {
        "sarcse": partial(encode, *load_model(folder), batch_size=batch_size),
        "sentence_transformers": partial(
            by_sentence_transformers.encode, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False
        ),
        "mean_pooling": partial(encode, *load_model(encoder, pooler="mean"), batch_size=batch_size),
    }


def measure(embed: dict[str, Embed], sentences: list[str], repeats: int) -> dict[str, list[float]]:
    """Sentences a second of every program, in `repeats` turns."""
    speeds: dict[str, list[float]] = {name: [] for name in embed}
    for _ in range(repeats + 1):
        for name, function in embed.items():
            start = time.perf_counter()
            function(sentences)
            speeds[name].append(len(sentences) / (time.perf_counter() - start))
    return {name: values[1:] for name, values in speeds.items()}


def main() -> None:
    parser = arguments_for(__doc__)
    parser.add_argument("--sentences", type=int, default=1000, help="Of each kind.")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    wiki = DataArguments(train_file=arguments.train_file, max_train_samples=arguments.sentences)
    pairs = load_sts("STS12", str(SHARED / "data" / "senteval"))
    texts = {
        "wiki": load_sentences(wiki)["text"][:],
        "sts": sorted({*pairs["sentence1"], *pairs["sentence2"]})[: arguments.sentences],
    }
    results = []
    with tempfile.TemporaryDirectory() as folder:
        embed = programs(arguments.model, arguments.batch_size, folder)
        for name, sentences in texts.items():
            speeds = measure(embed, sentences, arguments.repeats)
            medians = {program: statistics.median(values) for program, values in speeds.items()}
            results.append(
                {
                    "text": name,
                    "sentences": len(sentences),
                    "batch_size": arguments.batch_size,
                    "threads": arguments.threads,
                    "median_sentences_per_second": medians,
                    "sentences_per_second": speeds,
                }
            )
            print(f"\n{len(sentences)} sentences, {name}:\n")
            print("| program               | sentences/s | sarcse's speed over it |")
            print("| --------------------- | ----------: | ---------------------: |")
            for program, median in medians.items():
                print(f"| {program:21} | {median:11.0f} | {medians['sarcse'] / median:22.2f} |", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps({"settings": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
