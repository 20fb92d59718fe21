"""
How fast sentences are encoded: sentences a second of one SARCSE folder in this project's loop and in
sentence-transformers' `encode`, beside the plain encoder under mean pooling, which is the ceiling.

    python -m benchmarks.encode_speed [--output FILE]

Two kinds of sentences: those of wiki500k, and the distinct ones of the STS pairs, which are shorter. The same batch
size, precision (float32) and number of threads; all take turns. Speed does not depend on the weights, so the SARCSE
folder has fresh ones.
"""

import tempfile
from functools import partial

import torch
from sentence_transformers import SentenceTransformer

from benchmarks.common import SHARED, arguments_for, print_table, speed_rows, speeds_in_turns, write_output
from sarcse.arguments import ModelArguments
from sarcse.embedding import Embed, encode
from sarcse.loading import load_model
from sarcse.sentences import DataArguments, load_sentences
from sarcse.sts import load_sts
from sarcse.training import build_model


def programs(encoder: str, batch_size: int, folder: str) -> dict[str, Embed]:
    model, tokenizer = build_model(ModelArguments(model_name_or_path=encoder))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    by_sentence_transformers = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    return {
        "sarcse": partial(encode, *load_model(folder), batch_size=batch_size),
        "sentence_transformers": partial(
            by_sentence_transformers.encode, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False
        ),
        "mean_pooling": partial(encode, *load_model(encoder, pooler="mean"), batch_size=batch_size),
    }


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
            turns = {program: partial(function, sentences) for program, function in embed.items()}
            speeds = speeds_in_turns(turns, len(sentences), arguments.repeats)
            setting = {"text": name, "sentences": len(sentences), "batch_size": arguments.batch_size}
            results.append({**setting, "threads": arguments.threads, **speeds})
            print_table(f"{len(sentences)} sentences, {name}", speed_rows(speeds))
    write_output({"settings": results}, arguments.output)


if __name__ == "__main__":
    main()
