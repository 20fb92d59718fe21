"""
Encode sentences with any kind of model, and measure the embeddings of graded pairs: similarities, alignment and
uniformity, and figures.

Shapes: P pairs of S distinct sentences, d dimensions.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from configuration_sarcse import SarcseConfig
from modeling_sarcse import SarcseModel, list_of_sentences
from sarcse.data.sentences import fingerprint
from sarcse.data.tokens import unknown_share
from sarcse.evaluation import figures
from sarcse.evaluation.comparison import Geometry, Measurement, Results, correlations, none_if_nan, reference_task
from sarcse.evaluation.jobs import Embed, Job, duplicates_job, plane
from sarcse.evaluation.report import row_label, short_name
from sarcse.loading import check_tokenizer, config_fields, is_sarcse, kind_of_model, load_model
from sarcse.options import FIRST_LAST
from sarcse.output import RECORD_NAME, RESULTS_NAME
from sarcse.reconstruction import token_importance


logger = logging.get_logger(__name__)

# Pairs with a score above this are positive, as in the SimCSE paper's figures of alignment on STS-B.
POSITIVE_SCORE = 4


# --- Models ----------------------------------------------------------------------------------------------------------


def load_embedders(
    name_or_path: str,
    poolers: list[str],
    revision: str,
    device: torch.device,
    batch_size: int,
    trust_remote_code: bool = False,
) -> Iterator[tuple[str, str, Embed]]:
    """
    Load a model as rows of a comparison: (name of the row, pooler, embedder). A SARCSE or sentence-transformers model
    has its own pooling and is one row; a plain encoder is one row for each of `poolers`.

    Raises:
        ValueError: if nothing at `name_or_path` can be loaded, or it is not a text encoder.
    """
    kind = kind_of_model(name_or_path, revision)
    if config_fields(name_or_path, revision).get("pooler") == FIRST_LAST:  # a model of an earlier version: an encoder
        kind, poolers = "encoder", [FIRST_LAST]
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if kind == "sentence-transformers":
        yield name_or_path, kind, load_sentence_transformer(name_or_path, device, batch_size, **options)
        return
    for pooler in [None] if kind == "sarcse" else poolers:
        if pooler is not None:
            options["pooler"] = "mean" if pooler == FIRST_LAST else pooler
        model, tokenizer = load_model(name_or_path, **options)
        if pooler == FIRST_LAST:
            average_first_and_last(model)
        row = name_or_path if pooler is None or len(poolers) == 1 else f"{name_or_path}, {pooler}"
        embed = partial(encode, model.to(device), tokenizer, batch_size=batch_size)
        yield row, pooler or model.config.pooler, embed


def average_first_and_last(model: SarcseModel) -> None:
    """Make the encoder's vectors the mean of its first and last layer's: mean pooling then is `FIRST_LAST`."""

    def average(encoder: torch.nn.Module, arguments: Any, output: Any) -> None:
        # Index 0 holds the input embeddings: the first layer is 1 (github.com/princeton-nlp/SimCSE/issues/133).
        output.last_hidden_state = (output.hidden_states[1] + output.last_hidden_state) / 2  # (B, L, d)

    model.config.output_hidden_states = True
    model.encoder.register_forward_hook(average)


def load_sentence_transformer(name_or_path: str, device: torch.device, batch_size: int, **options: Any) -> Embed:
    """
    The embedder of a sentence-transformers model; `options` are those of `SentenceTransformer`.

    Raises:
        ValueError: if sentence-transformers is not installed, or cannot load the model.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ValueError(
            f"{name_or_path} is a sentence-transformers model. To score it: `pip install sentence-transformers`."
        ) from error
    try:
        model = SentenceTransformer(name_or_path, device=str(device), **options)
    except Exception as error:  # transformers has a dozen exceptions for missing files
        raise ValueError(f"{name_or_path}: sentence-transformers cannot load it.\n{error}") from error
    if isinstance(model.tokenizer, PreTrainedTokenizerBase) and hasattr(model[0], "auto_model"):
        check_tokenizer(name_or_path, model.tokenizer, model[0].auto_model.config)

    def embed(sentences: list[str]) -> torch.Tensor:
        bar = sys.stderr.isatty() and PartialState().is_main_process
        embeddings = model.encode(sentences, batch_size=batch_size, show_progress_bar=bar, convert_to_tensor=True)
        return embeddings.float().cpu()  # (len(sentences), d)

    return embed


# --- Embeddings ------------------------------------------------------------------------------------------------------


def encode(
    model: SarcseModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str], batch_size: int = 64
) -> torch.Tensor:
    """
    Sentence embeddings as a float32 tensor on the CPU, `(len(sentences), d)`, as the model makes them. This is
    `SarcseModel.encode` with a warning if the model cannot read the text, and a progress bar on one process only.

    Args:
        model (`SarcseModel`): The model.
        tokenizer (`PreTrainedTokenizerBase`): The model's own.
        sentences (`list[str]`): Cut at the encoder's limit.
        batch_size (`int`): Sentences encoded at once.

    Raises:
        ValueError: if `sentences` is one string or a table, or one of them is not text; or if `batch_size` is below 1.
    """
    sentences = list_of_sentences(sentences)
    if len(sentences) >= 100:  # fewer would prove nothing
        sample = sentences[:: len(sentences) // 100]  # evenly spaced, because they may be sorted
        token_ids = tokenizer(sample, truncation=True)["input_ids"]
        if unknown_share(token_ids, tokenizer) > 0.5:
            logger.warning_once("Most tokens of these sentences are unknown to the model. Does it know the language?")
    bar = None if PartialState().is_main_process else False
    return torch.from_numpy(model.encode(sentences, tokenizer, batch_size, show_progress_bar=bar))


@contextmanager
def in_own_precision(model: torch.nn.Module) -> Iterator[None]:
    """A context without the autocast that accelerate wraps the forward pass of a model in training in (`--bf16`)."""
    wrapped = [module for module in model.modules() if "_original_forward" in vars(module)]
    forwards = [vars(module).pop("forward") for module in wrapped]  # below it is the class's own
    try:
        yield
    finally:
        for module, forward in zip(wrapped, forwards):
            module.forward = forward  # type: ignore[method-assign]


@dataclass(frozen=True)
class EmbeddedPairs:
    """
    Graded pairs and the normalised embeddings of their distinct sentences. The embeddings are float64: in single
    precision, pairs of nearly equal similarity would swap ranks.
    """

    embeddings: torch.Tensor  # (S, d)
    first: torch.Tensor  # (P,) rows of embeddings
    second: torch.Tensor  # (P,)
    scores: np.ndarray  # (P,)

    def similarities(self) -> np.ndarray:
        """
        Cosine similarities, `(P,)`, rounded to 12 decimals: all pairs of equal sentences have exactly 1 and share a
        rank. Otherwise rounding errors would rank such pairs, of which STS12 has 79. In SentEval and in
        sentence-transformers this moves its Spearman correlation by up to 3e-5 (0.003 in the tables), depending on the
        precision.
        """
        blocks = zip(self.first.split(65536), self.second.split(65536))  # so that memory does not grow with P d
        similarities = [(self.embeddings[first] * self.embeddings[second]).sum(dim=1) for first, second in blocks]
        return torch.cat(similarities).numpy().round(12)  # (P,)

    def geometry(self) -> Geometry:
        """
        Alignment of the pairs with a score above `POSITIVE_SCORE`, and uniformity of the distinct sentences,
        measured as in the SimCSE paper on STS-B.
        """
        positive = torch.from_numpy(self.scores > POSITIVE_SCORE)  # (P,)
        return Geometry(
            alignment=alignment(self.embeddings[self.first[positive]], self.embeddings[self.second[positive]]),
            positive_pairs=int(positive.sum()),
            uniformity=uniformity(self.embeddings),
            sentences=len(self.embeddings),
        )


def embed_pairs(embed: Embed, pairs: datasets.Dataset, alone: bool = False) -> EmbeddedPairs:
    """
    Embed each distinct sentence of `pairs` once. With several processes each embeds a share and all get the result, so
    all of them must call this; `alone`, only the calling process does.
    """
    pairs = pairs.with_format(None)  # Python's strings and numbers, whatever library its rows are for
    first, second = pairs["sentence1"][:], pairs["sentence2"][:]
    sentences = sorted({*first, *second})
    row = {sentence: index for index, sentence in enumerate(sentences)}
    embeddings = embed(sentences) if alone else embed_together(embed, sentences)
    return EmbeddedPairs(
        F.normalize(embeddings.double(), dim=1),
        torch.tensor([row[sentence] for sentence in first]),
        torch.tensor([row[sentence] for sentence in second]),
        np.array(pairs["score"][:], dtype=np.float64),
    )


def embed_together(embed: Embed, sentences: list[str]) -> torch.Tensor:
    """Embeddings, `(len(sentences), d)`, of which each process makes a share: all must call this, and all get all."""
    state = PartialState()
    shares = gather_object([embed(sentences[state.process_index :: state.num_processes])])
    embeddings = torch.empty(len(sentences), shares[0].shape[1])
    for process, share in enumerate(shares):
        embeddings[process :: len(shares)] = share
    return embeddings


# By name, functions that give the scores of a job from the embeddings of its texts.
Jobs = dict[str, Callable[[Embed], Job]]


def measure(
    embed: Embed, tasks: dict[str, datasets.Dataset], pooler: str | None = None, jobs: Jobs | None = None
) -> Measurement:
    """
    Similarities of every task's pairs, alignment and uniformity on the reference task, and the scores of `jobs`. All
    processes must call this, and all get the same result.
    """
    measurement = Measurement(pooler)
    for name, job in (jobs or {}).items():
        measurement.jobs[name] = job(partial(embed_together, embed))
    for name, pairs in tasks.items():
        embedded = embed_pairs(embed, pairs)
        measurement.similarities[name] = embedded.similarities()
        if {*embedded.scores} == {0, 1}:
            measurement.jobs[name] = duplicates_job(measurement.similarities[name], embedded.scores)
        if name == reference_task(tasks):
            measurement.geometry = embedded.geometry()
    return measurement


def task_picked_on(picked_on: str | None, tasks: dict[str, datasets.Dataset]) -> str | None:
    """The name of the task whose pairs picked a checkpoint, from the SHA-256 in the training's record."""
    return next((name for name, pairs in tasks.items() if picked_on and picked_on == fingerprint(pairs)), None)


def recorded_picked_on(name_or_path: str) -> str | None:
    """The SHA-256 of the pairs that picked a model's checkpoint; None without a record of its training."""
    record = Path(name_or_path, RECORD_NAME)
    return json.loads(record.read_text(encoding="utf-8")).get("picked_on") if record.is_file() else None


def measure_before(
    model: SarcseModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: dict[str, datasets.Dataset],
    revision: str,
    jobs: Jobs | None = None,
) -> dict[str, Measurement]:
    """
    Measure a model on the tasks and `jobs` before it is trained. If its layers are fresh, its encoder is measured
    instead, with mean and first-token pooling. Mean pooling, the baseline that is hard to beat, comes first, because
    the differences in sts_results.json are from the first row.
    """
    name = model.name_or_path
    if is_sarcse(config_fields(name, revision)):  # whatever sentence-transformers makes of it
        return {f"before: {name}": measure(partial(encode, model, tokenizer), tasks, model.config.pooler, jobs)}
    measurements = {}
    for pooler in ("mean", "cls"):
        config = SarcseConfig(encoder_config=model.config.encoder_config, pooler=pooler)
        baseline = SarcseModel(config, encoder=model.encoder)
        measurements[f"before: {name}, {pooler}"] = measure(partial(encode, baseline, tokenizer), tasks, pooler, jobs)
    return measurements


def pair_metrics(embedded: EmbeddedPairs, name: str) -> dict[str, float | None]:
    """
    The metrics of an evaluation during training: `{name}_spearman`, times 100, `alignment` and `uniformity`. One that
    does not exist is None.
    """
    geometry = embedded.geometry()
    return {
        f"{name}_spearman": correlations(embedded.similarities(), embedded.scores).spearman,
        "alignment": geometry.alignment,
        "uniformity": geometry.uniformity,
    }


# --- Alignment and uniformity ----------------------------------------------------------------------------------------


def alignment(first: torch.Tensor, second: torch.Tensor) -> float | None:
    """
    Mean squared distance of positive pairs (Wang and Isola, arXiv 2005.10242, section 4.1, alpha = 2). The rows
    of `first` and `second`, both `(P, d)`, are normalised embeddings. None if there is no pair.
    """
    return none_if_nan((first - second).pow(2).sum(dim=1).mean().item())


def uniformity(embeddings: torch.Tensor, block_size: int = 1024) -> float | None:
    """
    Log of the mean Gaussian potential `exp(-2 d^2)` over all pairs of distinct rows (Wang and Isola, section 4.1, with
    t = 2). `embeddings` are normalised, `(S, d)`. None for a single row. Memory grows with S, not with its square.
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
    results: Results, measurements: dict[str, Measurement], tasks: dict[str, datasets.Dataset], output_dir: Path
) -> None:
    """
    Draw the densities and the alignment-uniformity plane of the reference task, and the training curves of the models
    whose folders have a log (`trainer_state.json`).
    """
    models, task = results.models, reference_task(tasks)
    labels = {name: row_label(short_name(name), scores) for name, scores in models.items()}
    if len(set(labels.values())) < len(labels):
        labels = {name: row_label(name, scores) for name, scores in models.items()}
    if task is not None:
        figures.similarity_densities(
            {labels[name]: measurement.similarities[task] for name, measurement in measurements.items()},
            {labels[name]: scores.tasks[task].spearman for name, scores in models.items()},
            np.array(tasks[task]["score"][:], dtype=np.float64),
            output_dir / "similarity_densities",
        )
        figures.alignment_uniformity(
            {
                labels[name]: (scores.geometry.alignment, scores.geometry.uniformity, scores.average)
                for name, scores in models.items()
                if scores.geometry is not None
            },
            output_dir / "alignment_uniformity",
        )
    figures.job_scores(
        {
            labels[name]: {
                f"{job}: {of}": (score.value, *score.interval)
                for job, found in scores.jobs.items()
                for of, score in found.scores.items()
            }
            for name, scores in models.items()
        },
        output_dir / "job_scores",
    )
    for job, first in next(iter(measurements.values())).jobs.items():
        if len(first.drawn) > 0:
            maps = {labels[name]: plane(measurement.jobs[job].drawn) for name, measurement in measurements.items()}
            figures.text_map(maps, first.labels, output_dir / "text_map")
    figures.training_curve({labels[name]: log_history(name) for name in models}, output_dir / "training_curve")


def remove_results(folder: Path) -> None:
    """Delete the scores of a trained model and all its figures, if there are any."""
    for name in (Path(RESULTS_NAME).stem, *figures.FIGURES):
        for file in folder.glob(f"{name}.*"):
            file.unlink()


def log_history(name_or_path: str) -> list[dict[str, float]]:
    """The training log in a model's folder; empty if no Trainer wrote the folder."""
    state = Path(name_or_path, "trainer_state.json")
    return json.loads(state.read_text(encoding="utf-8"))["log_history"] if state.is_file() else []


def explain(
    names: list[str], pairs: list[tuple[str, str]], device: torch.device, **options: Any
) -> dict[str, list[figures.ExplainedPair]]:
    """
    The data of figure 1: by model, the tokens of each pair with their reconstruction errors, and the pair's cosine
    similarity. `options` are those of `load_model`.

    Raises:
        ValueError: if a model is not a SARCSE model that can reconstruct.
    """
    explained: dict[str, list[figures.ExplainedPair]] = {}
    for name in names:
        model, tokenizer = load_model(name, **options)
        if kind_of_model(name, options["revision"]) != "sarcse" or model.sentence_encoder.decoder is None:
            raise ValueError(f"{name} cannot reconstruct tokens from an embedding: --explain needs a SARCSE model.")
        model.to(device)
        explained[name] = []
        for pair in pairs:
            first, second = token_importance(model, list(pair), tokenizer)
            one, other = encode(model, tokenizer, list(pair))
            similarity = F.cosine_similarity(one, other, dim=0).item()
            explained[name].append((first, second, similarity))
    return explained


def explanation_text(explained: dict[str, list[figures.ExplainedPair]]) -> str:
    """Each sentence's tokens, the most important first, as text for the terminal."""
    lines = []
    for name, pairs in explained.items():
        lines.append(f"{name}: tokens and their reconstruction errors, the most important first")
        for *sentences, similarity in pairs:
            for tokens in sentences:
                ordered = sorted(tokens, key=lambda token: token[1])
                lines.append("  " + "  ".join(f"{text.strip()} {error:.3f}" for text, error in ordered))
            lines.append(f"  cosine similarity {similarity:.3f}")
    return "\n".join(lines)
