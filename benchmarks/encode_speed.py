"""
Encoding speed in sentences per second: this project's loop, `encode` of sentence-transformers, and ONNX Runtime in
float32 and int8. All use the same SARCSE folder. The plain encoder with mean pooling is the upper limit for the first
two.

    python -m benchmarks.encode_speed [--output FILE]

There are two kinds of sentences: wiki500k, and the distinct sentences of the STS pairs, which are shorter. Batch size
and threads (one, then `--threads`) are the same for all programs, which take turns. Speed does not depend on the
weights, so the SARCSE folder has freshly initialised ones.
"""

import tempfile
from functools import partial
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

from benchmarks.common import SHARED, arguments_for, print_table, speed_rows, speeds_in_turns, write_output
from sarcse.data.sentences import load_sentences
from sarcse.data.sts import load_sts
from sarcse.evaluation.embedding import encode
from sarcse.evaluation.jobs import Embed
from sarcse.loading import load_model
from sarcse.options import DataArguments
from sarcse.release import onnx_files
from sarcse.training.arguments import ModelArguments
from sarcse.training.build import build_model


def write_model(encoder: str, folder: str) -> None:
    model, tokenizer = build_model(ModelArguments(model_name_or_path=encoder))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    onnx_files.write_float(model, tokenizer, Path(folder), plain=False)
    onnx_files.write_int8(Path(folder))


def programs(encoder: str, batch_size: int, folder: str) -> dict[str, Embed]:
    """The programs, with as many threads as torch has now."""
    model, tokenizer = load_model(folder)
    sessions = [
        onnx_files.open_session(Path(folder, name)) for name in (onnx_files.FLOAT_FILE, onnx_files.INT8_FILES[0])
    ]
    by_onnx = partial(onnx_files.embed, pooler=model.sentence_encoder, tokenizer=tokenizer, batch_size=batch_size)
    by_sentence_transformers = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    return {
        "sarcse": partial(encode, model, tokenizer, batch_size=batch_size),
        "sentence_transformers": partial(
            by_sentence_transformers.encode, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False
        ),
        "onnx_float32": lambda sentences: by_onnx(sessions[0], sentences=sentences),
        "onnx_int8": lambda sentences: by_onnx(sessions[1], sentences=sentences),
        "mean_pooling": partial(encode, *load_model(encoder, pooler="mean"), batch_size=batch_size),
    }


def main() -> None:
    parser = arguments_for(__doc__)
    parser.add_argument("--sentences", type=int, default=1000, help="Sentences of each kind.")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    wiki = DataArguments(train_file=arguments.train_file, max_train_samples=arguments.sentences)
    pairs = load_sts("STS12", str(SHARED / "data" / "senteval"))
    texts = {
        "wiki": load_sentences(wiki)["text"][:],
        "sts": sorted({*pairs["sentence1"], *pairs["sentence2"]})[: arguments.sentences],
    }
    results = []
    with tempfile.TemporaryDirectory() as folder:
        write_model(arguments.model, folder)
        for threads in sorted({1, arguments.threads}):
            torch.set_num_threads(threads)
            embed = programs(arguments.model, arguments.batch_size, folder)
            for name, sentences in texts.items():
                turns = {program: partial(function, sentences) for program, function in embed.items()}
                speeds = speeds_in_turns(turns, len(sentences), arguments.repeats)
                setting = {"text": name, "sentences": len(sentences), "batch_size": arguments.batch_size}
                results.append({**setting, "threads": threads, **speeds})
                print_table(f"{len(sentences)} sentences, {name}, threads: {threads}", speed_rows(speeds))
    write_output({"settings": results}, arguments.output)


if __name__ == "__main__":
    main()
