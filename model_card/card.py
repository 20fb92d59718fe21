"""
The README.md of a release, from what was measured and recorded: a number that nobody measured is left out.
"""

import json
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import PreTrainedTokenizerBase

from modeling_sarcse import SarcseModel
from sarcse.arguments import ModelArguments
from sarcse.comparison import ModelScores, intervals_table, markdown_table, reference_task, results_table, short_name
from sarcse.figures import FIGURES
from sarcse.record import FILE_NAME
from sarcse.sts import STS_TASKS


TEMPLATE = Path(__file__).with_name("card.md")

SARCSE = "[arXiv 2402.15153](https://arxiv.org/abs/2402.15153)"
SIMCSE = "[arXiv 2104.08821](https://arxiv.org/abs/2104.08821)"
WITH_RECONSTRUCTION = f"""Trained without labels with the losses of SARCSE ({SARCSE}): InfoNCE over two dropout
views of each sentence spreads the embeddings; and reconstructing every token's vector from the embedding, with weights
that fall with the token's frequency, keeps the rare, meaning-bearing tokens in it."""
WITHOUT_RECONSTRUCTION = f"""Trained without labels by InfoNCE over two dropout views of each sentence, as SimCSE
({SIMCSE})."""

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


@dataclass
class Facts:
    """
    What is known of a model.

    Args:
        model, tokenizer: As released.
        record (`dict`): training_record.json; empty without.
        models (`dict[str, ModelScores]`): Its scores beside those of others, by row; empty without.
        row (`str`): The model's own row of `models`.
        figure_dir (`Path`): Where figures of these scores may be.
        seeds (`dict[int, ModelScores]`): Of the same training with other seeds, by seed.
    """

    model: SarcseModel
    tokenizer: PreTrainedTokenizerBase
    record: dict[str, Any]
    models: dict[str, ModelScores]
    row: str | None
    figure_dir: Path
    seeds: dict[int, ModelScores] = field(default_factory=dict)

    def own(self) -> ModelScores | None:
        """The model's own row, if it was scored."""
        return None if self.row is None else self.models[self.row]

    def base_model(self) -> str | None:
        """Hub id of what the training started from, if it came from the Hub."""
        base = self.record.get("base_model", {})
        return base["name"] if base.get("revision") else None

    def figures(self) -> list[Path]:
        """Those of `FIGURES` that are there."""
        return [file for name in FIGURES if (file := self.figure_dir / f"{name}.png").is_file()]

    def reconstructs(self) -> bool:
        """Whether the training had the reconstruction loss."""
        return self.record.get("hyperparameters", {}).get("reconstruction_weight", 0) > 0

    def method(self) -> str:
        """What the embedding is, and how it was trained, as far as that was recorded."""
        training = WITH_RECONSTRUCTION if self.reconstructs() else WITHOUT_RECONSTRUCTION
        embedding = f"The embedding is {self.model.sentence_encoder.description}."
        return f"{embedding} {training}" if self.record else embedding

    def is_sarcse(self) -> bool:
        """Whether it has the paper's autoencoder, or at least its reconstruction."""
        return self.model.sentence_encoder.has_layers or self.reconstructs()


# --- Reading ---------------------------------------------------------------------------------------------------------


def read_facts(
    model_dir: Path,
    model: SarcseModel,
    tokenizer: PreTrainedTokenizerBase,
    results_file: str | None = None,
    seed_dirs: list[str] | tuple[str, ...] = (),
) -> Facts:
    """
    Raises:
        ValueError: a file cannot be read, `results_file` has no row of this model, or the runs of `seed_dirs` differ
            in more than their seeds.
    """
    results_path = Path(results_file) if results_file else model_dir / "sts_results.json"
    models, row = read_scores(results_path, model_dir) if results_file or results_path.is_file() else ({}, None)
    record_path = model_dir / FILE_NAME
    return Facts(
        model=model,
        tokenizer=tokenizer,
        record=read_json(record_path) if record_path.is_file() else {},
        models=models,
        row=row,
        figure_dir=results_path.parent,
        seeds=read_seeds(model_dir, seed_dirs),
    )


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} could not be read: {error}") from error


def read_scores(path: Path, model_dir: Path) -> tuple[dict[str, ModelScores], str]:
    """All rows, and the name of the model's own: train.py says `after: FOLDER`, eval_sts.py the folder as given."""
    try:
        rows = read_json(path).get("models", {})
        own = [name for name in rows if name.startswith("after: ") or Path(name).resolve() == model_dir.resolve()]
        if len(own) != 1:
            raise ValueError(
                f"{path}: no scores of {model_dir} among {', '.join(rows) or 'no models'}. Make them with "
                f"`python eval_sts.py {model_dir} --output_dir OUT`, and give --results OUT/results.json."
            )
        models = {name: ModelScores.from_json(row) for name, row in rows.items()}
    except (AttributeError, KeyError, TypeError, StrictDataclassFieldValidationError) as error:
        found = repr(error.__cause__ or error)  # strict's own message has two lines
        raise ValueError(f"{path}: no scores as eval_sts.py and train.py write them: {found}") from error
    if len({tuple(scores.tasks) for scores in models.values()}) > 1:
        raise ValueError(f"{path}: its rows have different tasks.")
    return models, own[0]


def read_seeds(model_dir: Path, seed_dirs: list[str] | tuple[str, ...]) -> dict[int, ModelScores]:
    """Own scores of this run and of the same training with other seeds, by seed; empty if there are no others."""
    if not seed_dirs:
        return {}
    seeds: dict[int, ModelScores] = {}
    common = None
    for folder in (model_dir, *map(Path, seed_dirs)):
        record = read_json(folder / FILE_NAME)
        seed = record["hyperparameters"].pop("seed")
        trained = {name: record[name] for name in ("base_model", "architecture", "train_data", "hyperparameters")}
        if common is not None and trained != common:
            pairs = [(part, name) for part in trained for name in trained[part]]
            differing = [f"{part}.{name}" for part, name in pairs if trained[part][name] != common[part][name]]
            raise ValueError(
                f"--seeds {folder}: differs from {model_dir} in more than the seed: {', '.join(differing)}."
            )
        if seed in seeds:
            raise ValueError(f"--seeds {folder}: seed {seed} is there already.")
        common = trained
        models, row = read_scores(folder / "sts_results.json", folder)
        seeds[seed] = models[row]
    if len({tuple(scores.tasks) for scores in seeds.values()}) > 1:
        raise ValueError("--seeds: the runs were scored on different tasks.")
    return seeds


# --- Metadata --------------------------------------------------------------------------------------------------------


def published_scores(facts: Facts) -> dict[str, float]:
    """Spearman x 100 by task, of those tasks whose every published pair was scored: the others are no such scores."""
    own = facts.own()
    return {
        task: scores.spearman
        for task, scores in (own.tasks if own else {}).items()
        if task in STS_TASKS and scores.pairs == STS_TASKS[task].pairs and scores.spearman is not None
    }


def eval_results(facts: Facts) -> list[EvalResult]:
    """For the card's model-index, under the names that sentence-transformers' cards use."""
    return [
        EvalResult(
            task_type="semantic-similarity",
            task_name="Semantic Similarity",
            dataset_type=STS_TASKS[task].hub_id,
            dataset_name=task,
            dataset_split="test",
            metric_type="spearman_cosine",
            metric_name="Spearman correlation of cosine similarities x 100",
            metric_value=round(value, 2),
        )
        for task, value in published_scores(facts).items()
    ]


def eval_result_entries(facts: Facts) -> list[dict[str, Any]]:
    """The same for `.eval_results/` (huggingface.co/docs/hub/eval-results)."""
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
    dataset = facts.record.get("train_data", {}).get("hub_id")
    base_model = facts.base_model()
    method_tags = ["sarcse"] if facts.is_sarcse() else ["simcse"]
    return ModelCardData(
        model_name=repo_id.split("/")[-1],
        language=language or None,
        license=license,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        base_model=base_model if base_model != repo_id else None,  # trained further: the text names the commit
        datasets=[dataset] if dataset else None,
        tags=["sentence-transformers", "transformers", "feature-extraction", "sentence-similarity", *method_tags],
        eval_results=eval_results(facts) or None,
        metrics=["spearman_cosine"] if published_scores(facts) else None,
    )


# --- Sections --------------------------------------------------------------------------------------------------------


def model_facts(facts: Facts) -> dict[str, str]:
    config = facts.model.config
    # Without the autoencoder nothing but the pooler counts.
    names = ModelArguments.architecture() if facts.model.sentence_encoder.has_layers else ["pooler"]
    return {
        "Parameters": f"{facts.model.num_parameters():,}",
        "Embedding": f"{config.hidden_size} dimensions, not normalised; compare by cosine similarity",
        "Encoder": config.encoder_config.model_type,
        **{f"`{name}`": str(getattr(config, name)) for name in names},
    }


def scores_section(facts: Facts) -> str | None:
    """The table with every model it was compared with, intervals, seeds, and the figures."""
    own = facts.own()
    if own is None:
        return None
    models: dict[str, ModelScores] = {}
    for name, scores in facts.models.items():
        label = "this model" if name == facts.row else short_name(name)
        models[f"{label} ({len(models) + 1})" if label in models else label] = scores
    published = published_scores(facts)
    incomplete = [task for task in own.tasks if task in STS_TASKS and task not in published]
    parts = [
        "Spearman correlation x 100 of cosine similarities with human ratings, all subsets of a task concatenated; "
        "the best in bold.",
        results_table(models),
    ]
    if incomplete:
        parts.append(f"Not all published pairs were scored, so these are not comparable: {', '.join(incomplete)}.")
    parts += [
        "This model, with 95% bootstrap intervals over the choice of the pairs:",
        intervals_table({"this model": own}),
    ]
    if facts.seeds:
        parts += [f"The same training with {len(facts.seeds)} seeds:", seeds_table(facts.seeds)]
    elif facts.record:
        parts.append("One training seed: how much the scores vary with it was not measured.")
    if own.geometry is not None:
        parts.append(
            f"Alignment is over the {own.geometry.positive_pairs} pairs of {reference_task(own.tasks)} rated 4 or "
            f"more, uniformity over its {own.geometry.sentences} sentences (Wang and Isola, 2020); lower is better, "
            "of both together."
        )
    parts += [f"![{FIGURES[figure.stem]}]({figure.name})" for figure in facts.figures()]
    return "\n\n".join(parts)


def seeds_table(seeds: dict[int, ModelScores]) -> str:
    """One row a seed, then mean and sample standard deviation."""
    tasks = list(next(iter(seeds.values())).tasks)
    rows = {}
    for seed, scores in sorted(seeds.items()):
        values = [*(scores.tasks[task].spearman for task in tasks), scores.average]
        # A score that does not exist is NaN here, and so is what would rest on it.
        rows[f"seed {seed}"] = [math.nan if value is None else value for value in values]
    columns = list(zip(*rows.values()))
    rows["mean"] = [statistics.fmean(column) for column in columns]
    rows["standard deviation"] = [statistics.stdev(column) for column in columns]
    cells = [[name, *(f"{value:.2f}" for value in row)] for name, row in rows.items()]
    return markdown_table([["", *tasks, "average"], *cells])


def training_section(facts: Facts) -> str | None:
    if not facts.record:
        return None
    record, data = facts.record, facts.record["train_data"]
    base = record["base_model"]
    base_text = f"`{base['name']}`" + (f" at commit `{base['revision']}`" if base["revision"] else "")
    values = {name: value for name, value in record["hyperparameters"].items() if value not in (None, -1)}
    rows = [["hyperparameter", "value"], *([f"`{name}`", str(value)] for name, value in values.items())]
    return "\n\n".join(
        [
            f"- Started from {base_text}.\n"
            f"- Data: {training_data(data)}\n"
            f"- Hardware: {record['hardware']}.\n"
            f"- Versions: {', '.join(f'{name} {number}' for name, number in record['versions'].items())}."
            + (f"\n- Commit of the code: `{record['commit']}`." if record.get("commit") else ""),
            markdown_table(rows),
        ]
    )


def training_data(data: dict[str, Any]) -> str:
    if "sha256" not in data:
        return (
            f"a stream of sentences without labels from `{data['name']}`, shuffled in a buffer. Tokens were counted "
            f"in its first {data['token_count_samples']:,} sentences."
        )
    return (
        f"`{data['name']}`, {data['sentences']:,} sentences without labels. SHA-256 of them, each followed by a "
        f"newline: `{data['sha256']}`."
    )


def selected_on(facts: Facts) -> str | None:
    """The one place where labels come in."""
    values = facts.record.get("hyperparameters", {})
    if not values.get("load_best_model_at_end"):
        return None
    pairs = "STS-B dev" if values["metric_for_best_model"] == "stsb_spearman" else "graded pairs"
    return f"Labels had one part in it: {pairs} picked the checkpoint (`{values['metric_for_best_model']}`)."


def write_card(
    path: Path, facts: Facts, repo_id: str, revision: str | None, license: str | None, language: list[str]
) -> None:
    """Write the card; `revision` is what its examples pin, and without one it is no release's."""
    card = ModelCard.from_template(
        card_data(facts, repo_id, license, language),
        template_path=str(TEMPLATE),
        name=repo_id.split("/")[-1],
        repo_id=repo_id,
        pinned=f', revision="{revision}"' if revision else "",
        dimensions=facts.model.config.hidden_size,
        base_model=facts.base_model(),
        method=facts.method(),
        model_facts=model_facts(facts),
        scores=scores_section(facts),
        training=training_section(facts),
        # An encoder without positions has no limit; its tokenizer then says 10^30.
        max_length=facts.tokenizer.model_max_length if facts.tokenizer.model_max_length < 10**9 else None,
        training_length=facts.record.get("hyperparameters", {}).get("max_seq_length"),
        selected_on=selected_on(facts),
        license=license,
        citation=CITATIONS["sarcse" if facts.is_sarcse() else "simcse"],
    )
    card.save(path)
