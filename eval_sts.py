"""
Score sentence embeddings on the seven semantic textual similarity (STS) tasks, offline or from the Hub, compare
models, and draw the figures of the paper.

    python eval_sts.py MODEL [MODEL ...] [--sts_dir DIR] [--tasks STS12 ... STSB SICKR] [--output_dir OUT]
    python eval_sts.py MODEL --explain "A sentence." "Another." [--output_dir OUT]

The setting is the one that SimCSE calls "all" (arXiv 2104.08821, appendix B): all subsets of a year are concatenated
and one Spearman correlation, times 100, is taken over cosine similarities.

Shapes: P pairs of S distinct sentences, d dimensions.
"""

import argparse
import json
import math
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase
from transformers.utils import logging

import figures
from comparison import (
    Measurement,
    compare,
    none_if_nan,
    reference_task,
    report,
    row_label,
    short_name,
    write_results,
)
from data import STS_TASKS, load_tasks
from loading import check_tokenizer, kind_of_model, load_model
from modeling_sarcse import SarcseModel
from tokens import unknown_share


logger = logging.get_logger(__name__)

# From n sentences to their embeddings (n, d), float32 on the CPU: what every kind of model is reduced to.
Embed = Callable[[list[str]], torch.Tensor]

# Pairs with at least this score are positive, as in the SimCSE paper's figures of alignment on STS-B.
POSITIVE_SCORE = 4


# --- Models ----------------------------------------------------------------------------------------------------------


def quantized(model: torch.nn.Module) -> torch.nn.Module:
    """The model with int8 weights in its linear layers, whose inputs become int8 as they come; for a CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that torchao, a package of its own, will do this one day
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def load_embedders(
    name_or_path: str,
    poolers: list[str],
    revision: str,
    device: torch.device,
    batch_size: int,
    int8: bool = False,
    trust_remote_code: bool = False,
) -> Iterator[tuple[str, str, Embed]]:
    """
    The rows that one model gives in a comparison, as (name of the row, pooler, embedder): a SARCSE model and a
    sentence-transformers model bring their own pooling and are one row, a plain encoder is one for each of `poolers`.

    Raises:
        ValueError: nothing at `name_or_path` can be loaded, or it is not a text encoder.
    """
    kind = kind_of_model(name_or_path, revision)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    if kind == "sentence-transformers":
        yield name_or_path, kind, load_sentence_transformer(name_or_path, device, batch_size, int8, **options)
        return
    for pooler in [None] if kind == "sarcse" else poolers:
        model, tokenizer = load_model(name_or_path, **options, **({"pooler": pooler} if pooler else {}))
        row = name_or_path if pooler is None or len(poolers) == 1 else f"{name_or_path}, {pooler}"
        model = quantized(model) if int8 else model.to(device)
        yield row, model.config.pooler, partial(encode, model, tokenizer, batch_size=batch_size)


def load_sentence_transformer(
    name_or_path: str, device: torch.device, batch_size: int, int8: bool = False, **options: Any
) -> Embed:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ValueError(
            f"{name_or_path} is a sentence-transformers model: `pip install sentence-transformers` to score it."
        ) from error
    try:
        model = SentenceTransformer(name_or_path, device=str(device), **options)
    except Exception as error:  # transformers has a dozen exceptions for what is missing
        raise ValueError(f"{name_or_path}: sentence-transformers cannot load it.\n{error}") from error
    if isinstance(model.tokenizer, PreTrainedTokenizerBase) and hasattr(model[0], "auto_model"):
        check_tokenizer(name_or_path, model.tokenizer, model[0].auto_model.config)
    model = quantized(model) if int8 else model

    def embed(sentences: list[str]) -> torch.Tensor:
        bar = sys.stderr.isatty() and PartialState().is_main_process
        embeddings = model.encode(sentences, batch_size=batch_size, show_progress_bar=bar, convert_to_tensor=True)
        return embeddings.float().cpu()  # (len(sentences), d)

    return embed


# --- Embeddings ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def encode(
    model: SarcseModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str], batch_size: int = 64
) -> torch.Tensor:
    """
    Sentence embeddings, `(len(sentences), d)`, float32 on the CPU, not normalised.

    Sentences of as many tokens share a batch, so that hardly any padding is computed. The model is used in evaluation
    mode and left in the mode it came in.
    """
    training = model.training
    model.eval()
    try:
        token_ids = tokenizer(sentences, truncation=True)["input_ids"] if sentences else []
        if len(sentences) >= 100 and unknown_share(token_ids, tokenizer) > 0.5:  # of a few nothing follows
            logger.warning_once("Most tokens of these sentences are unknown to the model: does it know the language?")
        order = sorted(range(len(sentences)), key=lambda index: -len(token_ids[index]))
        pad = DataCollatorWithPadding(tokenizer)
        embeddings = torch.empty(len(sentences), model.config.hidden_size)
        quiet = None if PartialState().is_main_process else True
        for start in tqdm(range(0, len(order), batch_size), desc="Encoding", leave=False, disable=quiet):
            indices = order[start : start + batch_size]
            batch = pad([{"input_ids": token_ids[index]} for index in indices])
            embeddings[indices] = model(**batch.to(model.device)).pooler_output.float().cpu()  # (batch_size, d)
        return embeddings
    finally:
        model.train(training)


@dataclass(frozen=True)
class EmbeddedPairs:
    """
    Graded pairs and the normalised embeddings of their distinct sentences, float64: single precision would swap the
    ranks of pairs that are nearly as similar.
    """

    embeddings: torch.Tensor  # (S, d)
    first: torch.Tensor  # (P,) rows of embeddings
    second: torch.Tensor  # (P,)
    scores: np.ndarray  # (P,)

    def similarities(self) -> np.ndarray:
        """
        Cosine similarities, `(P,)`, to 12 decimals: two equal sentences have exactly 1, and all such pairs share a
        rank. Without that, rounding errors would rank the 79 of them in STS12, which moves its Spearman correlation
        by up to 3e-5 (0.003 in the tables) in SentEval and in sentence-transformers, as the precision falls.
        """
        blocks = zip(self.first.split(65536), self.second.split(65536))  # so that memory does not grow with P d
        similarities = [(self.embeddings[first] * self.embeddings[second]).sum(dim=1) for first, second in blocks]
        return torch.cat(similarities).numpy().round(12)  # (P,)

    def geometry(self) -> dict[str, float | int | None]:
        """
        `alignment`, over the `positive_pairs` with a score of at least `POSITIVE_SCORE`, and `uniformity`, over the
        distinct `sentences`, as the SimCSE paper measures them on STS-B.
        """
        positive = torch.from_numpy(self.scores >= POSITIVE_SCORE)  # (P,)
        return {
            "alignment": alignment(self.embeddings[self.first[positive]], self.embeddings[self.second[positive]]),
            "positive_pairs": int(positive.sum()),
            "uniformity": uniformity(self.embeddings),
            "sentences": len(self.embeddings),
        }


def embed_pairs(embed: Embed, pairs: datasets.Dataset) -> EmbeddedPairs:
    """
    Embed each distinct sentence of `pairs` once. Under several processes each embeds its share and all get all, so
    every one of them has to call this.
    """
    first, second = pairs["sentence1"][:], pairs["sentence2"][:]
    sentences = sorted({*first, *second})
    row = {sentence: index for index, sentence in enumerate(sentences)}
    state = PartialState()
    shares = gather_object([embed(sentences[state.process_index :: state.num_processes])])
    embeddings = torch.empty(len(sentences), shares[0].shape[1], dtype=torch.float64)
    for process, share in enumerate(shares):
        embeddings[process :: state.num_processes] = share.double()
    return EmbeddedPairs(
        F.normalize(embeddings, dim=1),
        torch.tensor([row[sentence] for sentence in first]),
        torch.tensor([row[sentence] for sentence in second]),
        np.array(pairs["score"][:], dtype=np.float64),
    )


def measure(embed: Embed, tasks: dict[str, datasets.Dataset], pooler: str | None = None) -> Measurement:
    """
    Similarities of every task's pairs, and alignment and uniformity of the reference task. Every process has to call
    it, and all get the same.
    """
    measurement = Measurement(pooler)
    for name, pairs in tasks.items():
        embedded = embed_pairs(embed, pairs)
        measurement.similarities[name] = embedded.similarities()
        if name == reference_task(tasks):
            measurement.geometry = embedded.geometry()
    return measurement


# --- Alignment and uniformity ----------------------------------------------------------------------------------------


def alignment(first: torch.Tensor, second: torch.Tensor) -> float | None:
    """
    Mean squared distance of positive pairs (Wang and Isola 2020, arXiv 2005.10242, section 4.1, alpha = 2); the rows
    of `first` and `second`, both `(P, d)`, are normalised embeddings. None without a pair.
    """
    return none_if_nan((first - second).pow(2).sum(dim=1).mean().item())


def uniformity(embeddings: torch.Tensor, block_size: int = 1024) -> float | None:
    """
    Log of the mean Gaussian potential exp(-2 d^2) over all pairs of distinct rows (Wang and Isola 2020, section 4.1,
    t = 2); `embeddings` are normalised, `(S, d)`. None for a single row. Memory grows with S, not with its square.
    """
    total, number = 0.0, len(embeddings)
    starts = range(0, number, block_size)
    for start in tqdm(starts, desc="Uniformity", leave=False, disable=None if len(starts) > 10 else True):
        block = embeddings[start : start + block_size]
        squares = (2 - 2 * block @ embeddings[start:].T).clamp(min=0)  # (block_size, S - start), of unit vectors
        # Above the diagonal, each pair once.
        total += squares.mul(-2).exp().triu(diagonal=1).sum(dtype=torch.float64).item()
    return none_if_nan(math.log(2 * total / (number * (number - 1)))) if number > 1 else None


# --- Figures ---------------------------------------------------------------------------------------------------------


def draw_figures(
    results: dict[str, Any],
    measurements: dict[str, Measurement],
    tasks: dict[str, datasets.Dataset],
    output_dir: Path,
) -> None:
    """
    Densities and the alignment-uniformity plane of the reference task; and the training curves of the models whose
    folders have a log (`trainer_state.json`).
    """
    models, task = results["models"], reference_task(tasks)
    labels = {name: row_label(short_name(name), entry) for name, entry in models.items()}
    if len(set(labels.values())) < len(labels):
        labels = {name: row_label(name, entry) for name, entry in models.items()}
    if task is not None:
        figures.similarity_densities(
            {labels[name]: measurement.similarities[task] for name, measurement in measurements.items()},
            {labels[name]: entry["tasks"][task]["spearman"] for name, entry in models.items()},
            np.array(tasks[task]["score"][:], dtype=np.float64),
            output_dir / "similarity_densities",
        )
        figures.alignment_uniformity(
            {
                labels[name]: (entry["alignment"], entry["uniformity"], entry["average"])
                for name, entry in models.items()
            },
            output_dir / "alignment_uniformity",
        )
    figures.training_curve({labels[name]: log_history(name) for name in models}, output_dir / "training_curve")


def log_history(name_or_path: str) -> list[dict[str, float]]:
    """The log of the training that made a folder; empty for what is no folder of train.py's or of a Trainer's."""
    state = Path(name_or_path, "trainer_state.json")
    return json.loads(state.read_text(encoding="utf-8"))["log_history"] if state.is_file() else []


def explain(
    names: list[str], pairs: list[tuple[str, str]], device: torch.device, **options: Any
) -> dict[str, list[figures.ExplainedPair]]:
    """
    Figure 1: the tokens of each pair with their reconstruction errors, and the cosine similarity, by model. `options`
    are `load_model`'s.

    Raises:
        ValueError: a model is not a SARCSE model that can reconstruct.
    """
    explained: dict[str, list[figures.ExplainedPair]] = {}
    for name in names:
        model, tokenizer = load_model(name, **options)
        if kind_of_model(name, options["revision"]) != "sarcse" or model.config.pooler not in ("autoencoder", "mean"):
            raise ValueError(f"{name} cannot reconstruct tokens from a sentence: --explain needs a SARCSE model.")
        model.to(device)
        explained[name] = []
        for pair in pairs:
            first, second = model.token_importance(list(pair), tokenizer)
            similarity = F.cosine_similarity(*encode(model, tokenizer, list(pair)), dim=0).item()
            explained[name].append((first, second, similarity))
    return explained


def explanation_text(explained: dict[str, list[figures.ExplainedPair]]) -> str:
    """The tokens of each sentence, the most important first, for the terminal."""
    lines = []
    for name, pairs in explained.items():
        lines.append(f"{name}: tokens and their reconstruction errors, the most important first")
        for *sentences, similarity in pairs:
            for tokens in sentences:
                ordered = sorted(tokens, key=lambda token: token[1])
                lines.append("  " + "  ".join(f"{text.strip()} {error:.3f}" for text, error in ordered))
            lines.append(f"  cosine similarity {similarity:.3f}")
    return "\n".join(lines)


# --- The command -----------------------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Score and compare models: Spearman correlation x 100 on the seven STS tasks, 'all' setting.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="Folder or Hub id of a SARCSE or sentence-transformers model, or of any text encoder.",
    )
    parser.add_argument(
        "--pooler",
        nargs="+",
        choices=("cls", "mean", "first_last_average"),
        default=["mean"],
        help="For encoders that bring no pooling of their own; one row for each (mean).",
    )
    parser.add_argument("--revision", default="main", help="Branch, tag or commit of models from the Hub (main).")
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="Run the code that an encoder brings. Needed if transformers has none for it; read it first.",
    )
    parser.add_argument("--sts_dir", help="Folder with the tasks in SentEval's layout. Default: the Hub's data sets.")
    parser.add_argument("--tasks", nargs="+", choices=STS_TASKS, default=list(STS_TASKS), help="Default: all seven.")
    parser.add_argument("--pairs", help="Score on this file instead: sentence1, sentence2, score (.tsv, .csv, ...).")
    parser.add_argument(
        "--explain",
        type=utf8,
        nargs=2,
        action="append",
        metavar="SENTENCE",
        help="Instead of scores: which tokens of two sentences a SARCSE model keeps. May be given several times.",
    )
    parser.add_argument(
        "--output_dir", help="Where to write results.json, results.md and the figures (--explain: output/explain)."
    )
    parser.add_argument("--batch_size", type=int, default=64, help="Sentences encoded at once (64).")
    parser.add_argument("--bf16", action="store_true", help="Encode under bfloat16 autocast.")
    parser.add_argument("--int8", action="store_true", help="Encode with the linear layers in int8, on the CPU.")
    parser.add_argument("--device", help="Default: a GPU, or whatever accelerate launch gives.")
    args = parser.parse_args(arguments)
    if args.batch_size < 1:
        parser.error(f"argument --batch_size: must be at least 1, got {args.batch_size}")
    return args


def utf8(text: str) -> str:
    """An argument as it is; argparse reports the UnicodeEncodeError, a ValueError, of one that is not UTF-8."""
    text.encode()
    return text


def choose_device(name: str | None) -> torch.device:
    """
    The device of this process; call it before anything else asks accelerate.

    Raises:
        ValueError: there is no such device, or one is chosen for several processes.
    """
    state = PartialState(cpu=name == "cpu" or not torch.accelerator.is_available())
    if name is None or name == "cpu":
        return state.device
    if state.num_processes > 1:
        raise ValueError(f"--device {name}: under several processes each has its own; leave it out.")
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {error}") from error


def writable_folder(name: str) -> Path:
    """
    Before the work, not after it.

    Raises:
        ValueError: the folder cannot be made or written to.
    """
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=name):
            return Path(name)
    except OSError as error:
        raise ValueError(f"--output_dir {name}: {error.strerror}.") from error


def score_command(args: argparse.Namespace, device: torch.device) -> None:
    output_dir = None if args.output_dir is None else writable_folder(args.output_dir)
    with PartialState().main_process_first():
        tasks = load_tasks(args.tasks, args.sts_dir, args.pairs)
    measurements: dict[str, Measurement] = {}
    for model in args.models:
        for row, pooler, embed in load_embedders(
            model, args.pooler, args.revision, device, args.batch_size, args.int8, args.trust_remote_code
        ):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.bf16):
                measurements[row] = measure(embed, tasks, pooler)
            if not all(np.isfinite(values).all() for values in measurements[row].similarities.values()):
                raise ValueError(f"{row}: some embeddings are not finite numbers; look at the model's weights.")
    if PartialState().is_main_process:
        results = compare(measurements, tasks)
        print(report(results))
        if output_dir is not None:
            write_results(results, output_dir / "results.json")
            draw_figures(results, measurements, tasks, output_dir)


def explain_command(args: argparse.Namespace, device: torch.device) -> None:
    if not PartialState().is_main_process:
        return
    output_dir = writable_folder(args.output_dir or "output/explain")
    options = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    explained = explain(args.models, args.explain, device, **options)
    figures.token_importance(explained, output_dir / "token_importance")
    print(explanation_text(explained))
    print(f"Shaded: {output_dir / 'token_importance'}.html, .png and .svg")


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    try:
        if args.int8 and args.device not in (None, "cpu"):
            raise ValueError(f"--int8 runs on the CPU, not on {args.device}: leave --device out.")
        device = choose_device("cpu" if args.int8 else args.device)
        explain_command(args, device) if args.explain else score_command(args, device)
    except ValueError as error:
        if PartialState().is_main_process:
            print(f"eval_sts.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
