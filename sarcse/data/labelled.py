"""Texts with labels, and collections to search in, for scoring."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from sarcse.data.files import UnreadableDataError, matching_files, read_rows, text_of


logger = logging.getLogger(__name__)


# --- Labelled texts --------------------------------------------------------------------------------------------------


def load_labelled(path: str, text_column: str = "text", label_column: str = "label") -> datasets.Dataset:
    """
    Load labelled texts from a .tsv, .csv, .jsonl or .parquet file. Rows without a text or a label are left out, and
    their number is logged.

    Returns:
        `datasets.Dataset` with the columns `text` and `label`, both text.

    Raises:
        ValueError: if the file is missing or cannot be read, lacks a column, or its labels say nothing about
            neighbours (`with_shared_labels`).
    """
    rows, number = [], 0
    for place, cells in read_rows(matching_files(path), (text_column, label_column)):
        number += 1
        text = text_of(place, text_column, cells[text_column])
        label = label_of(place, label_column, cells[label_column])
        if text and text.strip() and label:
            rows.append({"text": text, "label": label})
    if number > len(rows):
        what = f"no {text_column} or no {label_column}"
        logger.warning(f"{path}: {number - len(rows)} of {number} rows have {what}, and are left out.")
    if not rows:
        raise ValueError(f"{path}: no row with {text_column} and {label_column}.")
    return with_shared_labels(datasets.Dataset.from_list(rows), path)


def label_of(place: str, column: str, value: Any) -> str:
    """
    A cell of the label column as text, empty without a label. Categories may be numbers in JSON and Parquet.

    Raises:
        UnreadableDataError: if the cell is neither text nor a whole number.
    """
    if value is None:
        return ""
    if not isinstance(value, str | int):
        raise UnreadableDataError(f"{place}: {column!r} is {value!r}, not a label.")
    return (text_of(place, column, str(value)) or "").strip()


def is_labelled(rows: Any) -> bool:
    """Whether evaluation data are texts with labels, rather than graded pairs."""
    return isinstance(rows, datasets.Dataset) and {"text", "label"} <= {*rows.column_names}


def check_labelled(name: str, rows: datasets.Dataset) -> datasets.Dataset:
    """
    A data set's texts and labels, both as text.

    Raises:
        ValueError: if a cell is neither, or the labels say nothing about neighbours.
    """
    texts, labels = (rows.with_format(None)[column][:] for column in ("text", "label"))
    feature = rows.features["label"]
    if isinstance(feature, datasets.ClassLabel):
        labels = feature.int2str(labels)
    for row, (text, label) in enumerate(zip(texts, labels)):
        place = f"{name}, row {row}"
        if not text_of(place, "text", text) or not label_of(place, "label", label):
            raise ValueError(f"{place}: has no text or no label.")
    checked = datasets.Dataset.from_dict({"text": texts, "label": [str(label) for label in labels]})
    return with_shared_labels(checked, name)


def with_shared_labels(rows: datasets.Dataset, name: str) -> datasets.Dataset:
    """
    Return labelled texts unchanged, after checking that neighbours and clusters can be scored on them.

    Raises:
        ValueError: if all texts have the same label, or no two do.
    """
    labels = rows["label"][:]
    if len(set(labels)) == 1:
        raise ValueError(f"{name}: all {len(labels)} texts have the label {labels[0]!r}, but scores need two labels.")
    if len(set(labels)) == len(labels):
        raise ValueError(
            f"{name}: each of the {len(labels)} texts has a label of its own, so that no two belong together. Is "
            "this the column with the categories?"
        )
    return rows


def check_reference(path: str, reference: datasets.Dataset, rows: datasets.Dataset) -> None:
    """
    Check that neighbours of labelled texts can be found among those of a reference.

    Raises:
        ValueError: if the reference has no text of some label.
    """
    missing = sorted({*rows["label"][:]} - {*reference["label"][:]})
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(f"--reference {path}: no text with the label {', '.join(missing[:3])}{more}.")


# --- Retrieval -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Retrieval:
    """
    Queries and the documents that answer them.

    Args:
        queries (`dict[str, str]`), documents (`dict[str, str]`): Texts by id.
        relevant (`dict[str, dict[str, float]]`): By query, the grades of the documents that answer it.
    """

    queries: dict[str, str]
    documents: dict[str, str]
    relevant: dict[str, dict[str, float]]


def load_retrieval(folder: str) -> Retrieval:
    """
    Load a collection in BEIR's layout: corpus.jsonl with `_id`, `text` and perhaps `title`; queries.jsonl with `_id`
    and `text`; qrels/test.tsv, or the only file there, with `query-id`, `corpus-id` and `score`. Queries without a
    relevant document are left out.

    Raises:
        ValueError: if a file is missing or cannot be read, or names a query or document that there is not.
    """
    documents = {
        identifier: f"{title} {text}".strip()
        for identifier, text, title in texts_of(first_of(Path(folder), "corpus.jsonl*"), ("title",))
    }
    queries = {identifier: text for identifier, text, _ in texts_of(first_of(Path(folder), "queries.jsonl*"), ())}
    relevant: dict[str, dict[str, float]] = {}
    file = grades_file(Path(folder, "qrels"))
    for place, cells in read_rows([str(file)], ("query-id", "corpus-id", "score")):
        query, document = str(cells["query-id"]), str(cells["corpus-id"])
        for identifier, known, what in ((query, queries, "query"), (document, documents, "document")):
            if identifier not in known:
                raise ValueError(f"{place}: there is no {what} {identifier!r}.")
        try:
            grade = float(cells["score"])
        except ValueError as error:
            raise ValueError(f"{place}: the score {cells['score']!r} is not a number.") from error
        if grade > 0:
            relevant.setdefault(query, {})[document] = grade
    if not relevant:
        raise ValueError(f"{file}: no query has a relevant document.")
    return Retrieval({query: queries[query] for query in relevant}, documents, relevant)


def first_of(folder: Path, pattern: str) -> Path:
    """The file in a folder of this name, perhaps compressed."""
    found = sorted(folder.glob(pattern))
    if not found:
        name = pattern.removesuffix("*")
        raise ValueError(f"{folder / name}: no such file. --retrieval needs corpus.jsonl, queries.jsonl and qrels/.")
    return found[0]


def grades_file(folder: Path) -> Path:
    """test.tsv in BEIR's qrels/, or the only file there."""
    found = {file.name: file for file in sorted(folder.glob("*.tsv"))}
    if "test.tsv" in found:
        return found["test.tsv"]
    if len(found) != 1:
        raise ValueError(f"{folder}: needs test.tsv, or a single .tsv file; it has {', '.join(found) or 'none'}.")
    return next(iter(found.values()))


def texts_of(file: Path, optional: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Id, text and title of each line."""
    rows = []
    for place, cells in read_rows([str(file)], ("_id", "text"), optional):
        text, title = (text_of(place, name, cells.get(name)) or "" for name in ("text", "title"))
        rows.append((str(cells["_id"]), text, title))
    return rows
