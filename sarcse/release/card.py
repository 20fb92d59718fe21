"""
The README.md of a release, written from what was measured and recorded. Nothing else is stated.
"""

import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import validate_repo_id

from sarcse.evaluation.comparison import PRECISION, ModelScores, incomplete_tasks, reference_task
from sarcse.evaluation.figures import FIGURES
from sarcse.evaluation.report import (
    columns_of,
    intervals_table,
    job_notes,
    markdown_code,
    markdown_table,
    markdown_text,
    picked_on_words,
    resampled_items,
    results_table,
    short_name,
)
from sarcse.loading import ARCHITECTURE
from sarcse.options import HEALTH, LABELLED, MODEL_CARD, STS_TASKS, metric_name
from sarcse.release.facts import Facts, Onnx
from sarcse.release.plain import max_length, missing_weights


# Longest line of a card.
WIDTH = 119

# Owner of the repository in the examples of a card that has no repository yet.
PLACEHOLDER = "you"

# Example sentences that the model's page on the Hub offers to compare.
WIDGET = [
    {
        "source_sentence": "A child plays football on the grass.",
        "sentences": [
            "A boy is kicking a ball in the park.",
            "The children watch a football match on television.",
            "The bank raised its interest rates again.",
        ],
    },
    {
        "source_sentence": "The committee postponed its vote until the spring.",
        "sentences": [
            "The decision was put off for some months.",
            "The committee voted against the proposal.",
            "Spring is the season in which most birds nest.",
        ],
    },
]

TEMPLATE = MODEL_CARD / "card.md"

CITATIONS = {
    "sarcse": """@article{liu2024sarcse,
  title   = {Self-Adaptive Reconstruction with Contrastive Learning for Unsupervised Sentence Embeddings},
  author  = {Liu, Junlong and Shang, Xichen and Feng, Huawen and Zheng, Junhao and Ma, Qianli},
  journal = {arXiv preprint arXiv:2402.15153},
  year    = {2024}
}""",
    "simcse": """@inproceedings{gao2021simcse,
  title     = {{SimCSE}: Simple Contrastive Learning of Sentence Embeddings},
  author    = {Gao, Tianyu and Yao, Xingcheng and Chen, Danqi},
  booktitle = {Empirical Methods in Natural Language Processing (EMNLP)},
  year      = {2021}
}""",
}


# --- Metadata --------------------------------------------------------------------------------------------------------


def published_scores(facts: Facts) -> dict[str, float]:
    """
    Spearman x 100 of each task whose published pairs were all scored, in float32. Other scores would not be
    comparable.
    """
    own = facts.own() if facts.precision == PRECISION else None
    incomplete = incomplete_tasks(own) if own else {}
    return {
        scores.loaded_as: scores.spearman
        for task, scores in (own.tasks if own else {}).items()
        if scores.loaded_as is not None and task not in incomplete and scores.spearman is not None
    }


def eval_results(facts: Facts) -> list[EvalResult]:
    """The card's model-index, with the names and the scale (0 to 1) that sentence-transformers' cards use."""
    return [
        EvalResult(
            task_type="semantic-similarity",
            task_name="Semantic Similarity",
            dataset_type=STS_TASKS[task].hub_id,
            dataset_name=task,
            dataset_split="test",
            metric_type="spearman_cosine",
            metric_name="Spearman Cosine",
            metric_value=round(value / 100, 4),
        )
        for task, value in published_scores(facts).items()
    ]


def eval_result_entries(facts: Facts) -> list[dict[str, Any]]:
    """The same scores for `.eval_results/` (huggingface.co/docs/hub/eval-results), x 100, as mteb writes them."""
    entries = [
        EvalResultEntry(
            dataset_id=STS_TASKS[task].hub_id,
            task_id="default",
            value=round(value, 2),
            notes="Spearman correlation of cosine similarities x 100, all subsets concatenated",
        )
        for task, value in published_scores(facts).items()
    ]
    return eval_result_entries_to_yaml(entries)


def card_data(facts: Facts, repo_id: str, license: str | None, language: list[str]) -> ModelCardData:
    data = facts.record.get("train_data", {})
    dataset, base_model = data.get("hub_id"), facts.base_model()
    return ModelCardData(
        model_name=repo_id.split("/")[-1],
        language=language or None,
        license=license,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        base_model=base_model if base_model != repo_id else None,  # if trained further, the text names the commit
        datasets=[dataset] if dataset else None,
        tags=[
            *("sentence-transformers", "sentence-similarity", "feature-extraction", "dense", "transformers"),
            *([f"dataset_size:{data['sentences']}"] if "sentences" in data else []),
            *(f"loss:{name}" for name in facts.losses()),
            "sarcse" if facts.is_sarcse() else "simcse",
        ],
        widget=WIDGET if "en" in (language or ["en"]) else None,
        eval_results=eval_results(facts) or None,
        metrics=["spearman_cosine"] if published_scores(facts) else None,
    )


# --- Sections --------------------------------------------------------------------------------------------------------


def model_facts(facts: Facts) -> dict[str, str]:
    config = facts.model.config
    # Without the autoencoder only the pooler matters.
    names = ARCHITECTURE if facts.model.sentence_encoder.has_layers else ["pooler"]
    if not config.with_decoder:
        names = [name for name in names if not name.startswith("decoder_")]
    return {
        "Encoder": config.encoder_config.model_type,
        **{f"`{name}`": str(getattr(config, name)) for name in names},
        **({} if config.with_decoder else {"Decoder": "left out: only training and token importance use it"}),
    }


def summary(facts: Facts) -> list[str]:
    """Size and limits: what a reader needs to decide whether the model fits."""
    parameters, length = facts.model.num_parameters(), max_length(facts.tokenizer)
    config = facts.model.config
    length_1 = "normalised to length 1" if config.normalize else "not normalised"
    return [
        f"{config.hidden_size} dimensions, {length_1}: compare embeddings by cosine similarity.",
        f"{parameters:,} parameters, {megabytes(4 * parameters)} in float32.",
        *([f"Up to {length:,} tokens; longer text is truncated."] if length else []),
    ]


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 10**7 else f"{size / 1e6:,.1f} MB"


def onnx_table(onnx: Onnx) -> str:
    """The files with their sizes and, with int8, their scores on the same pairs."""
    header, rows = ["file", "size"], [[f"`{name}`", megabytes(size)] for name, size in onnx.files.items()]
    if onnx.task is not None:
        header.append(f"{markdown_text(onnx.task)}, {onnx.pairs:,} pairs")
        scores = (onnx.scores[name] for name in onnx.files)
        rows = [[*row, "" if score is None else f"{score:.2f}"] for row, score in zip(rows, scores)]
    return markdown_table([header, *rows])


def scores_section(facts: Facts) -> str | None:
    """The scores beside those of every model it was compared with, intervals, seeds, and the figures."""
    own = facts.own()
    if own is None:
        return None
    models: dict[str, ModelScores] = {}
    for name, scores in facts.models.items():
        label = "this model" if name == facts.row else short_name(name)
        models[f"{label} ({len(models) + 1})" if label in models else label] = scores
    incomplete = incomplete_tasks(own)
    of_pairs = (
        "Spearman correlation x 100 between cosine similarities and human ratings, with all subsets of a task "
        "concatenated. "
    )
    parts = [
        of_pairs * bool(own.tasks) + "The best score of each column is in bold.",
        *(f"- {note}" for note in job_notes(own)),
        *(
            [f"The sentences were encoded in {facts.precision}, so these are not the scores of the model as released."]
            if facts.precision != PRECISION
            else []
        ),
        results_table(models),
    ]
    if incomplete:
        parts.append(
            "Not comparable with published scores, because only some of the published pairs were scored: "
            f"{', '.join(incomplete)}."
        )
    if own.picked_on is not None:
        parts.append(
            f"{picked_on_words(own).capitalize()} also picked this model's checkpoint, which makes its score on them "
            "too high."
        )
    parts += [
        f"This model's scores with 95% bootstrap intervals over the {resampled_items(own)}:",
        intervals_table({"this model": own}),
    ]
    if facts.seeds:
        parts += [f"The same training with {len(facts.seeds)} seeds:", seeds_table(facts.seeds)]
    elif facts.record:
        parts.append("These scores are from one training seed. How much they vary between seeds was not measured.")
    if own.geometry is not None:
        parts.append(
            f"Alignment is measured on the {own.geometry.positive_pairs} pairs of "
            f"{markdown_text(str(reference_task(own.tasks)))} rated above 4, uniformity on all of its "
            f"{own.geometry.sentences} sentences. Lower is better, but only if both are low ([Wang and Isola](https://arxiv.org/abs/2005.10242))."
        )
    parts += [f"![{FIGURES[figure.stem]}]({figure.name})" for figure in facts.figures()]
    return "\n\n".join(parts)


def seeds_table(seeds: dict[int, ModelScores]) -> str:
    """One row per seed, then mean and sample standard deviation."""
    columns = columns_of({f"seed {seed}": scores for seed, scores in sorted(seeds.items())})
    # A missing score becomes NaN, and so does any mean that includes it.
    values = np.array([*columns.values()], dtype=np.float64).T  # (seeds, columns)
    rows = dict(zip((f"seed {seed}" for seed in sorted(seeds)), values))
    rows |= {"mean": values.mean(axis=0), "standard deviation": values.std(axis=0, ddof=1)}
    cells = [[name, *(f"{value:.2f}" for value in row)] for name, row in rows.items()]
    return markdown_table([["", *map(markdown_text, columns)], *cells])


def training_section(facts: Facts) -> str | None:
    if not facts.record:
        return None
    record, data = facts.record, facts.record["train_data"]
    base = record["base_model"]
    commit = f" at commit `{base['revision']}`" if base["revision"] else ""
    kept = record.get("sentence_encoder")
    sentence_encoder = f", a sentence encoder: {markdown_text(kept)}" if kept else ""
    # Without what was not set; a dictionary has options of accelerate that few have heard of.
    values = {
        name: value
        for name, value in record["hyperparameters"].items()
        if not (value is None or value is False or value == -1 or isinstance(value, dict))
    }
    rows = [["hyperparameter", "value"], *([f"`{name}`", markdown_text(str(v))] for name, v in values.items())]
    lines = [
        f"Started from {markdown_code(base['name'])}{commit}{sentence_encoder}.",
        f"Data: {training_data(data)}",
        f"Hardware: {record['hardware']}.",
        *([f"Time: {duration(record['seconds'])}, including evaluation."] if record.get("seconds") else []),
        f"Versions: {', '.join(f'{name} {number}' for name, number in record['versions'].items())}.",
        *([f"Commit of the code: `{record['commit']}`."] if record.get("commit") else []),
    ]
    return "\n".join(
        [
            *(f"- {line}" for line in lines),
            "\n<details>\n<summary>Hyperparameters</summary>\n",
            markdown_table(rows),
            "\n</details>",
        ]
    )


def duration(seconds: float) -> str:
    """In seconds, minutes or hours, whichever is below a hundred."""
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def training_data(data: dict[str, Any]) -> str:
    if "sha256" not in data:
        return (
            f"unlabelled sentences streamed from {markdown_code(data['name'])}, shuffled in a buffer. Token "
            f"frequencies were counted in the first {data['token_count_samples']:,} sentences."
        )
    return (
        f"{markdown_code(data['name'])}, {data['sentences']:,} unlabelled sentences. SHA-256 of the sentences, each "
        f"followed by a newline: `{data['sha256']}`."
    )


def selected_on(facts: Facts) -> str | None:
    """What picked the checkpoint: the only step that may use labels."""
    values = facts.record.get("hyperparameters", {})
    if not values.get("load_best_model_at_end"):
        return None
    metric = values["metric_for_best_model"]
    name = markdown_code(metric)
    if metric_name(metric) == HEALTH:
        return f"The training used no labels: the health check, which needs none, picked the checkpoint ({name})."
    pairs = {"stsb_spearman": "STS-B dev", LABELLED: "labelled texts"}.get(metric_name(metric), "graded pairs")
    return f"The training used labels for one thing only: {pairs} picked the checkpoint ({name})."


def placeholder(name: str) -> str:
    """The repository in the examples of a card that has none yet: `name` without what the Hub does not allow."""
    return f"{PLACEHOLDER}/{re.sub(r'[^A-Za-z0-9_.]+|[.]{2,}', '-', name).strip('-.') or 'model'}"


def write_card(
    path: Path, facts: Facts, repo_id: str, revision: str | None, license: str | None, language: list[str]
) -> None:
    """
    Write the card. Examples that run code pin `revision`; without one the card is not a release's. If `PLACEHOLDER`
    owns the repository, the card says that it has not been pushed.

    Raises:
        ValueError: `repo_id` cannot be a repository's name.
    """
    validate_repo_id(repo_id)
    card = ModelCard.from_template(
        card_data(facts, repo_id, license, language),
        template_path=str(TEMPLATE),
        name=markdown_text(repo_id.split("/")[-1]),
        repo_id=repo_id,
        placeholder=repo_id.startswith(f"{PLACEHOLDER}/"),
        plain=facts.plain,
        pooling=facts.model.sentence_encoder.pooling_mode if facts.plain else "cls",  # with code any gives the same
        zero_pooler=facts.plain and bool(missing_weights(facts.model)),
        trust="" if facts.plain else ", trust_remote_code=True",
        pinned=f', revision="{revision}"' if revision and not facts.plain else "",
        dimensions=facts.model.config.hidden_size,
        normalize=facts.plain and facts.model.config.normalize,  # with code the model does it
        base_model=markdown_text(facts.base_model() or ""),
        method=facts.method(),
        summary=summary(facts),
        onnx=onnx_table(facts.onnx) if facts.onnx else None,
        int8=bool(facts.onnx and facts.onnx.task),
        model_facts=model_facts(facts),
        scores=scores_section(facts),
        training=training_section(facts),
        training_length=facts.record.get("hyperparameters", {}).get("max_seq_length"),
        selected_on=selected_on(facts),
        license=markdown_text(license or ""),
        citation=CITATIONS["sarcse" if facts.is_sarcse() else "simcse"],
    )
    card.text = wrapped(card.text)
    card.save(path)


def wrapped(text: str) -> str:
    """The text with paragraphs and list items wrapped at `WIDTH`, for readers of the raw file."""
    lines: list[str] = []
    code = prose = False
    for line in text.split("\n"):
        code ^= line.startswith("```")
        starts = line.startswith("- ")
        if code or (not starts and re.match(r"$|[|!<#]|```", line)):
            prose = False
            lines.append(line)
        elif prose and not starts:
            lines[-1] += f" {line.strip()}"
        else:
            prose = True
            lines.append(line)
    return "\n".join(part for line in lines for part in wrapped_line(line))


def wrapped_line(line: str) -> list[str]:
    if re.match(r"[|!<#]", line) or len(line) <= WIDTH:
        return [line]
    indent = "  " if line.startswith("- ") else ""
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
