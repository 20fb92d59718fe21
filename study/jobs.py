"""
The study on what people do with embeddings: train on short texts without their labels, and score by the labels.

    python -m study.jobs [--encoders ...] [--corpora ...] [--methods ...] [--seeds 5] [--processes 2]
    python -m study.jobs --table

The methods are the encoder before training, the ladder of the STS study with the settings that it chose there,
sentence-transformers' TSDAE and Contrastive Tension, and SARCSE with train.py's defaults. All see each text once. No
label picks a checkpoint. The scores are those of `eval_sts.py --labelled` on the odd rows, since defaults were chosen
on the even ones, and the average of the STS tasks. Each run is a line of study/results/jobs.jsonl.
"""

import json
import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from transformers import set_seed

from benchmarks.common import MAX_SEQ_LENGTH, PROJECT, QUIET
from sarcse.data.labelled import load_labelled
from sarcse.data.sts import load_sts
from sarcse.evaluation.comparison import correlations
from sarcse.evaluation.embedding import encode, measure
from sarcse.evaluation.jobs import Embed, labelled_job
from sarcse.evaluation.report import markdown_table
from sarcse.training.build import build_trainer
from sarcse.training.parsing import parse_arguments
from sarcse.training.record import versions
from study.configurations import (
    ENCODER,
    FINAL,
    MEAN_RECONSTRUCTED,
    PAPER,
    SECOND_ENCODER,
    SMALL_ENCODER,
    START,
    TEXTCNN,
    TEXTCNN_RECONSTRUCTED,
    UNTRAINED_MEAN,
)
from study.lines import make_missing, parser_for_runs, read_lines
from study.reading import Score, average, mean_and_deviation
from study.run import TASKS, encoder_folder, program_fields


if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

LINES = PROJECT / "study" / "results" / "jobs.jsonl"
ENCODERS = (ENCODER, SMALL_ENCODER, SECOND_ENCODER)
CORPORA = {"Stack Overflow": "stackoverflow.tsv.xz", "Banking77": "banking77_train.tsv.xz"}
TSDAE, TENSION, SARCSE = "TSDAE", "Contrastive Tension", "SARCSE"
RUNGS = ("SimCSE", TEXTCNN, TEXTCNN_RECONSTRUCTED, PAPER, "mean pooling", MEAN_RECONSTRUCTED)
METHODS = (UNTRAINED_MEAN, TSDAE, TENSION, *RUNGS, SARCSE)


# --- Methods ---------------------------------------------------------------------------------------------------------


def trained(run: dict[str, Any], data: str, texts: list[str], folder: str) -> Embed:
    """The model of a run."""
    method, encoder = run["method"], str(encoder_folder(run["encoder"], data))
    set_seed(run["seed"])
    if method in BASELINES or method == UNTRAINED_MEAN:
        from sentence_transformers import SentenceTransformer  # here and below, as it takes seconds

        model = SentenceTransformer(modules=mean_pooled(encoder), device="cpu")
        if method != UNTRAINED_MEAN:
            BASELINES[method](model, texts, run["seed"], folder)
        return partial(embedded, model.eval())
    fields = {"model_name_or_path": encoder, "output_dir": folder, "seed": run["seed"], "report_to": "none"}
    fields |= {"train_file": str(Path(data, "data", "jobs", CORPORA[run["corpus"]])), "disable_tqdm": True}
    if method != SARCSE:
        ladder = FINAL[ENCODER if run["encoder"] == SECOND_ENCODER else run["encoder"]][method]
        fields |= {**program_fields({**START, **ladder, "max_train_samples": None}), **QUIET, "health_sentences": 0}
    flags = [f"--{name}={value}" for name, value in fields.items() if value is not None]
    trainer = build_trainer(*parse_arguments(flags))
    trainer.train()
    return partial(encode, trainer.model.eval(), trainer.processing_class)


def mean_pooled(encoder: str) -> list[Any]:
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(encoder, max_seq_length=MAX_SEQ_LENGTH)
    return [transformer, Pooling(transformer.get_embedding_dimension(), "mean")]


def embedded(model: "SentenceTransformer", texts: list[str]) -> Any:
    return model.encode(texts, convert_to_tensor=True, show_progress_bar=False).cpu()


def sentence_transformers_training(
    model: "SentenceTransformer", rows: datasets.Dataset, loss: Any, seed: int, folder: str, **fields: Any
) -> None:
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    arguments = SentenceTransformerTrainingArguments(
        folder, seed=seed, num_train_epochs=1, use_cpu=True, **fields, **QUIET
    )
    SentenceTransformerTrainer(model, arguments, train_dataset=rows, loss=loss).train()


def tsdae(model: "SentenceTransformer", texts: list[str], seed: int, folder: str) -> None:
    """
    TSDAE (arXiv 2104.06979) with the batch size, learning rate and share of deleted words of sentence-transformers'
    example. Mean pooling instead of the first token, which is weak in these encoders before training.
    """
    from sentence_transformers.sentence_transformer.losses import DenoisingAutoEncoderLoss

    def deleted(text: str) -> str:
        words = text.split()
        return " ".join(word for word in words if random.random() > 0.6) or random.choice(words)

    rows = datasets.Dataset.from_dict({"text": texts})
    rows.set_transform(lambda batch: {"noisy": [*map(deleted, batch["text"])], "text": batch["text"]})
    fields = {"per_device_train_batch_size": 8, "learning_rate": 3e-5, "lr_scheduler_type": "constant"}
    sentence_transformers_training(model, rows, DenoisingAutoEncoderLoss(model), seed, folder, **fields)


def tension(model: "SentenceTransformer", texts: list[str], seed: int, folder: str) -> None:
    """Contrastive Tension with in-batch negatives, and the learning rate of sentence-transformers' example."""
    from sentence_transformers.sentence_transformer.losses import ContrastiveTensionLossInBatchNegatives

    rows = datasets.Dataset.from_dict({"text": texts})
    fields = {"per_device_train_batch_size": 64, "learning_rate": 5e-5}
    sentence_transformers_training(model, rows, ContrastiveTensionLossInBatchNegatives(model), seed, folder, **fields)


BASELINES: dict[str, Callable[["SentenceTransformer", list[str], int, str], None]] = {TSDAE: tsdae, TENSION: tension}


# --- Runs ------------------------------------------------------------------------------------------------------------


def one_run(run: dict[str, Any], data: str) -> dict[str, Any]:
    """The content of a line apart from `run` itself."""
    rows = load_labelled(str(Path(data, "data", "jobs", CORPORA[run["corpus"]])))
    with tempfile.TemporaryDirectory() as folder:
        embed = trained(run, data, rows["text"][:], folder)
    halves = {"choose": range(0, len(rows), 2), "report": range(1, len(rows), 2)}
    sts = {task: load_sts(task, f"{data}/data/senteval") for task in TASKS}
    similarities = measure(embed, sts).similarities
    return {
        **{half: scores(embed, rows.select(of)) for half, of in halves.items()},
        "sts": {task: correlations(similarities[task], np.array(sts[task]["score"][:])).spearman for task in TASKS},
        "versions": versions(),
    }


def scores(embed: Embed, rows: datasets.Dataset) -> dict[str, float]:
    return {name: score.value() for name, score in labelled_job(embed, rows).scores.items()}


def key_of(run: dict[str, Any]) -> str:
    """Identifies a run."""
    return json.dumps([run[name] for name in ("encoder", "corpus", "method", "seed")])


def runs(encoders: list[str], corpora: list[str], methods: list[str], seeds: int) -> list[dict[str, Any]]:
    """Ordered by seed, so that stopping early leaves whole tables. The untrained encoder has one seed."""
    return [
        {"encoder": encoder, "corpus": corpus, "method": method, "seed": seed}
        for seed in range(1, seeds + 1)
        for encoder in encoders
        for method in methods
        for corpus in corpora
        if seed == 1 or method != UNTRAINED_MEAN
    ]


# --- The table -------------------------------------------------------------------------------------------------------

SCORES: dict[str, Score] = {
    "V": lambda line: line["report"]["clusters"],
    "P@1": lambda line: line["report"]["neighbour"],
    "P@10": lambda line: line["report"]["ten neighbours"],
    "STS": average,
}
# For the README.
SHORT = {"methods": (UNTRAINED_MEAN, TSDAE, TENSION, "SimCSE", SARCSE), "scores": ("V", "P@10")}


def jobs_table(
    lines: list[dict[str, Any]], methods: tuple[str, ...] = METHODS, scores: tuple[str, ...] = tuple(SCORES)
) -> str:
    """Scores of the odd rows of each corpus, mean and standard deviation over seeds, and STS after each training."""
    rows = [["encoder", "method", "seeds", *(f"{corpus}, {name}" for corpus in CORPORA for name in scores)]]
    for encoder in ENCODERS:
        for method in methods:
            of_method = [line for line in lines if line["encoder"] == encoder and line["method"] == method]
            of_corpora = [{line["seed"]: line for line in of_method if line["corpus"] == corpus} for corpus in CORPORA]
            cells = [mean_and_deviation(of, SCORES[name]) for of in of_corpora for name in scores]
            if of_method:
                rows.append([encoder, method, str(len({line["seed"] for line in of_method})), *cells])
    return markdown_table(rows)


def main() -> None:
    parser = parser_for_runs(str(__doc__), seeds=5)
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--corpora", nargs="+", choices=CORPORA, default=list(CORPORA))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    if arguments.table:
        print(jobs_table(read_lines(LINES)))
    elif arguments.run:
        print(json.dumps(one_run(arguments.run, arguments.data)))
    else:
        missing = runs(arguments.encoders, arguments.corpora, arguments.methods, arguments.seeds)
        make_missing("study.jobs", LINES, missing, key_of, arguments.data, arguments.threads, arguments.processes)


if __name__ == "__main__":
    main()
