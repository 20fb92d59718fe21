"""
What people do with a file of texts: search it, find its clusters, find its duplicates. All of its columns are kept.

Shapes: N texts, d dimensions, K clusters.
"""

import argparse
import csv
import json
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.nn import functional as F

from sarcse.data.files import matching_files, read_rows, text_of
from sarcse.data.tokens import evenly_spaced
from sarcse.evaluation.embedding import load_embedders
from sarcse.evaluation.jobs import k_means, nearest
from sarcse.evaluation.scoring import choose_device


# The numbers of clusters that are tried, and the texts that their silhouettes are measured on. Of many texts, a few
# clusters have the best silhouette whatever they are about: of questions of 77 categories two, of titles of 20 tags
# three. From eight on it is 50 and 30 there (models of 2 layers, trained on these texts).
TRIED = (2, 3, 5, 8, 12, 20, 30, 50, 80)
MANY, FEWEST = 100, 8
MEASURED = 2_000
SHOWN = 3  # texts of each cluster
WIDTH = 100  # characters of a text on the terminal


def run(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: if the file or the model cannot be read, or the file has too few texts.
    """
    if args.output is not None and not Path(args.output).resolve().parent.is_dir():
        raise ValueError(f"--output {args.output}: its folder does not exist.")
    rows, texts = read_texts(args.file, args.text_column)
    query = [args.query] if args.command == "search" else []
    embeddings = embed_texts(args, [*texts, *query])  # (N, d), or (N + 1, d) with a query
    command = {"search": search, "cluster": cluster, "duplicates": duplicates}[args.command]
    found = command(args, rows, texts, embeddings)
    if args.output is not None:
        write_rows(args.output, found)
        print(f"In {args.output}: {counted(len(found), 'row')}.")


def read_texts(file: str, column: str) -> tuple[list[dict[str, Any]], list[str]]:
    """
    The rows of a file with all columns, and their texts. Rows without a text are left out, and their number is said.

    Raises:
        ValueError: if the file is missing or cannot be read, lacks the column, or has fewer than two texts.
    """
    rows, texts, number = [], [], 0
    for place, row in read_rows(matching_files(file), (column,), optional=None):
        number += 1
        text = text_of(place, column, row[column])
        if text and text.strip():
            rows.append(row)
            texts.append(text)
    if number > len(rows):
        print(
            f"{file}: {number - len(rows):,} of {number:,} rows have no {column}, and are left out.", file=sys.stderr
        )
    if len(texts) < 2:
        raise ValueError(f"{file}: needs at least two texts in the column {column}, and has {len(texts)}.")
    return rows, texts


def embed_texts(args: argparse.Namespace, texts: list[str]) -> torch.Tensor:
    """
    Embeddings of length 1, `(N, d)`. With `--cache` those of the file are kept beside it for the same texts and model;
    a model that embeds the first text otherwise is another one.
    """
    device = choose_device(args.device)
    _, _, embed = next(load_embedders(args.model, ["mean"], args.revision, device, args.batch_size, False))
    if not args.cache:
        return F.normalize(embed(texts), dim=1)
    file, own = Path(f"{args.file}.embeddings.npz"), len(texts) - (args.command == "search")
    key, first = sha256("\n".join(texts[:own]).encode()).hexdigest(), embed(texts[:1])
    saved = np.load(file) if file.is_file() else {"key": ""}
    kept = torch.from_numpy(saved["embeddings"]) if str(saved["key"]) == key else torch.empty(0)
    if kept.shape[1:] != first.shape[1:] or not torch.allclose(kept[:1], first, atol=1e-4):
        kept = embed(texts[:own])
        try:
            np.savez(file, key=key, embeddings=kept.numpy())
        except OSError as error:
            raise ValueError(f"--cache: {file} cannot be written ({error.strerror}).") from error
    new = embed(texts[own:]) if own < len(texts) else kept[:0]
    return F.normalize(torch.cat([kept, new]), dim=1)


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def one_line(text: str) -> str:
    """The beginning of a text, for the terminal."""
    text = " ".join(text.split())
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


def search(
    args: argparse.Namespace, rows: list[dict[str, Any]], texts: list[str], embeddings: torch.Tensor
) -> list[dict[str, Any]]:
    """The rows whose texts are most similar to the query, whose embedding is the last one."""
    near = nearest(embeddings[-1:], embeddings[:-1], args.top)[0]
    similarities = (embeddings[near] @ embeddings[-1]).tolist()
    for place, similarity in zip(near, similarities):
        print(f"{similarity:.3f}  {one_line(texts[place])}")
    return [{**rows[place], "similarity": round(value, 4)} for place, value in zip(near, similarities)]


def cluster(
    args: argparse.Namespace, rows: list[dict[str, Any]], texts: list[str], embeddings: torch.Tensor
) -> list[dict[str, Any]]:
    """
    All rows with the number of their cluster, the largest being 0.

    Raises:
        ValueError: if there are fewer texts than clusters.
    """
    if args.clusters is not None and args.clusters > len(texts):
        raise ValueError(f"--clusters {args.clusters}: {args.file} has only {len(texts)} texts.")
    number = args.clusters or best_number(embeddings.numpy())
    clusters = k_means(embeddings.numpy(), number)  # (N,)
    order = [name for name, _ in Counter(clusters.tolist()).most_common()]
    clusters = np.array([order.index(name) for name in clusters])
    for name in range(len(order)):
        places = np.flatnonzero(clusters == name)
        centre = embeddings[places].mean(dim=0)  # (d,)
        closest = places[(embeddings[places] @ centre).argsort(descending=True)[:SHOWN].numpy()]
        print(f"Cluster {name}: {counted(len(places), 'text')}")
        for place in closest:
            print(f"  {one_line(texts[place])}")
    return [{**row, "cluster": int(name)} for row, name in zip(rows, clusters)]


def best_number(embeddings: np.ndarray) -> int:
    """The number of clusters with the highest mean silhouette (scikit-learn) on some of the texts, `(N, d)`."""
    from sklearn.metrics import silhouette_score

    some = embeddings[evenly_spaced(len(embeddings), MEASURED)]
    fewest = FEWEST if len(some) >= MANY else 2
    possible = [number for number in TRIED if fewest <= number < len(some)]
    if not possible:  # two texts
        return 1
    scores = {number: silhouette_score(some, k_means(some, number)) for number in possible}
    number = max(scores, key=lambda number: scores[number])
    print(
        f"{number} clusters have the best silhouette of {', '.join(map(str, scores))}: --clusters sets another number."
    )
    return number


def duplicates(
    args: argparse.Namespace, rows: list[dict[str, Any]], texts: list[str], embeddings: torch.Tensor
) -> list[dict[str, Any]]:
    """Pairs of texts that are at least as similar as the threshold, the most similar first."""
    pairs: list[tuple[float, int, int]] = []
    for start in range(0, len(embeddings), 1000):
        similarities = embeddings[start : start + 1000] @ embeddings.T  # (1000, N)
        first, second = (similarities >= args.threshold).nonzero(as_tuple=True)
        above = second > first + start  # each pair once
        first, second = first[above], second[above]
        pairs += zip(similarities[first, second].tolist(), (first + start).tolist(), second.tolist())
    pairs.sort(reverse=True)
    for similarity, first, second in pairs[: args.top]:
        print(f"{similarity:.3f}  {one_line(texts[first])}\n       {one_line(texts[second])}")
    print(f"With a similarity of at least {args.threshold:g}: {counted(len(pairs), 'pair')}.")
    return [
        {
            "similarity": round(similarity, 4),
            **{f"{name}_1": value for name, value in rows[first].items()},
            **{f"{name}_2": value for name, value in rows[second].items()},
        }
        for similarity, first, second in pairs
    ]


def write_rows(file: str, rows: list[dict[str, Any]]) -> None:
    """
    Write rows in the format that the file's name says.

    Raises:
        ValueError: if the file cannot be written.
    """
    try:
        if file.endswith((".csv", ".tsv")):
            with open(file, "w", newline="", encoding="utf-8") as stream:
                names = list(dict.fromkeys(name for row in rows for name in row))
                writer = csv.DictWriter(stream, names, delimiter="\t" if file.endswith(".tsv") else ",")
                writer.writeheader()
                writer.writerows(rows)
        elif file.endswith(".jsonl"):
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            Path(file).write_text("".join(lines), encoding="utf-8")
        else:
            datasets.Dataset.from_list(rows).to_parquet(file)
    except OSError as error:
        raise ValueError(f"--output {file}: {error.strerror}.") from error
