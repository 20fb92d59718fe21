"""
Scores of what people do with embeddings: find clusters, neighbours, duplicates and answers.

Each score is a function of how often every text, pair or query counts, `(n,)`: once, for the score itself, or as often
as a bootstrap resample drew it. The same resamples serve all models, so that differences are paired.

Shapes: N texts or queries, D documents, P pairs, d dimensions, R bootstrap resamples.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import datasets
import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from sarcse.data.labelled import Retrieval
from sarcse.data.tokens import evenly_spaced


# Turns n sentences into embeddings (n, d), float32 on the CPU: the common interface of all kinds of models.
Embed = Callable[[list[str]], torch.Tensor]

NEIGHBOURS = 10
# k-means on more texts takes minutes and says the same.
CLUSTERED = 10_000
STARTS = 5


@dataclass(frozen=True)
class JobScore:
    """
    One score of a model, times 100.

    Args:
        items (`int`): How many texts, pairs or queries it is measured on.
        weighted (`Callable`): The score by how often each of these counts, `(items,)`.
    """

    items: int
    weighted: Callable[[np.ndarray], float]

    def value(self) -> float:
        return self.weighted(np.ones(self.items))

    def resampled(self, number: int) -> np.ndarray:
        """
        The scores of bootstrap resamples, `(R,)`, moved so that their mean is the score itself: the V-measure of a
        resample is too high, because a text that was drawn twice agrees with itself. Every score of as many items has
        the same resamples.
        """
        generator = np.random.default_rng(0)
        shares = np.full(self.items, 1 / self.items)
        values = np.array([self.weighted(generator.multinomial(self.items, shares)) for _ in range(number)])
        return values + self.value() - values.mean()


@dataclass(frozen=True)
class Job:
    """
    What a model was measured on, and its scores.

    Args:
        sizes (`dict[str, int]`): Numbers of texts, labels, queries or documents, for the reader.
        scores (`dict[str, JobScore]`): By name.
        drawn (`torch.Tensor` of shape `(n, d)`): The embeddings of the n texts that figures show.
        labels (`list[str]`): Of these texts.
    """

    sizes: dict[str, int]
    scores: dict[str, JobScore]
    drawn: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    labels: list[str] = field(default_factory=list)


# --- Labelled texts --------------------------------------------------------------------------------------------------


def labelled_job(embed: Embed, rows: datasets.Dataset, reference: datasets.Dataset | None = None) -> Job:
    """
    Scores of labelled texts: the V-measure of k-means with as many clusters as labels, and the share of the nearest
    neighbour, and of the nearest ten, with the text's own label. Neighbours are looked for among the other texts, or
    in `reference`.
    """
    embeddings = F.normalize(embed(rows["text"][:]), dim=1)  # (N, d)
    names, labels = np.unique(rows["label"][:], return_inverse=True)  # (N,)
    same = same_labels(embed, rows, reference, embeddings)
    (drawn,) = np.isin(labels, np.argsort(-np.bincount(labels), kind="stable")[:DRAWN_LABELS]).nonzero()
    drawn = drawn[evenly_spaced(len(drawn), DRAWN)]  # (n,)
    some = evenly_spaced(len(labels), CLUSTERED)
    clusters = k_means(embeddings[some].numpy(), len(set(labels[some])))
    return Job(
        sizes={"texts": len(labels), "labels": len(names)},
        scores={
            "clusters": JobScore(len(some), lambda weights: 100 * v_measure(labels[some], clusters, weights)),
            "neighbour": mean_score(same[:, 0]),
            "ten neighbours": mean_score(same.mean(axis=1)),
        },
        drawn=embeddings[drawn],
        labels=[str(names[label]) for label in labels[drawn]],
    )


def same_labels(
    embed: Embed,
    rows: datasets.Dataset,
    reference: datasets.Dataset | None = None,
    embeddings: torch.Tensor | None = None,
) -> np.ndarray:
    """
    Whether each of a text's ten nearest neighbours has its label, the nearest first: `(N, NEIGHBOURS)`. `embeddings`
    are those of the texts, `(N, d)`, of length 1, if they are known.
    """
    if embeddings is None:
        embeddings = F.normalize(embed(rows["text"][:]), dim=1)
    others, own = embeddings, np.array(rows["label"][:])
    if reference is not None:
        others, own = F.normalize(embed(reference["text"][:]), dim=1), np.array(reference["label"][:])  # (D, d), (D,)
    near = nearest(embeddings, others, NEIGHBOURS, leave_out_own=reference is None)  # (N, NEIGHBOURS)
    return own[near] == np.array(rows["label"][:])[:, None]


def nearest(queries: torch.Tensor, documents: torch.Tensor, number: int, leave_out_own: bool = False) -> np.ndarray:
    """
    The rows of the most similar documents, the most similar first: `(N, d)` and `(D, d)`, of length 1, -> `(N,
    number)`, or fewer columns if there are fewer documents. `leave_out_own`: both are the same texts.
    """
    found = []
    number = min(number, len(documents) - leave_out_own)
    starts = range(0, len(queries), 1000)
    for start in tqdm(starts, desc="Neighbours", leave=False, disable=None if len(starts) > 10 else True):
        similarities = queries[start : start + 1000] @ documents.T  # (1000, D)
        if leave_out_own:
            rows = torch.arange(len(similarities))
            similarities[rows, start + rows] = -torch.inf
        found.append(similarities.topk(number).indices)
    return torch.cat(found).numpy()


def k_means(embeddings: np.ndarray, number: int) -> np.ndarray:
    """The cluster of each row, `(N, d)` -> `(N,)`."""
    from sklearn.cluster import KMeans  # which takes a second to import

    return KMeans(number, n_init=STARTS, random_state=0).fit_predict(embeddings)


def v_measure(labels: np.ndarray, clusters: np.ndarray, weights: np.ndarray) -> float:
    """
    The harmonic mean of homogeneity and completeness (Rosenberg and Hirschberg, EMNLP 2007) of texts that count as
    often as `weights` say, all `(N,)`. scikit-learn's function has no weights.
    """
    number = clusters.max() + 1
    counts = np.bincount(labels * number + clusters, weights, (labels.max() + 1) * number)
    joint = counts.reshape(-1, number) / counts.sum()  # (labels, clusters)
    together, of_labels, of_clusters = map(entropy, (joint.ravel(), joint.sum(axis=1), joint.sum(axis=0)))
    shared = of_labels + of_clusters - together
    return 2 * shared / (of_labels + of_clusters) if of_labels + of_clusters > 0 else 1.0


def entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def mean_score(values: np.ndarray) -> JobScore:
    """The mean of a value of each text or query, `(N,)`."""
    return JobScore(len(values), lambda weights: 100 * float(weights @ values) / float(weights.sum()))


# Texts of the most frequent labels are drawn, at most so many: more colours or points cannot be told apart.
DRAWN_LABELS, DRAWN = 6, 1_000


def plane(embeddings: torch.Tensor) -> np.ndarray:
    """The texts in a plane that keeps neighbours together, by t-SNE (JMLR 9, 2008): `(n, d)` -> `(n, 2)`."""
    from sklearn.manifold import TSNE

    perplexity = min(30, (len(embeddings) - 1) / 3)
    return TSNE(2, init="pca", perplexity=perplexity, random_state=0).fit_transform(embeddings.numpy())


# --- Duplicates and retrieval ----------------------------------------------------------------------------------------


def duplicates_job(similarities: np.ndarray, scores: np.ndarray) -> Job:
    """The average precision of pairs whose scores say that they are duplicates, 1, or not, 0: both `(P,)`."""
    from sklearn.metrics import average_precision_score

    def precision(weights: np.ndarray) -> float:
        if not (weights @ scores > 0):  # a resample without a duplicate
            return 0.0
        return 100 * average_precision_score(scores, similarities, sample_weight=weights)

    sizes = {"pairs": len(scores), "duplicates": int(scores.sum())}
    return Job(sizes, {"average precision": JobScore(len(scores), precision)})


def retrieval_job(embed: Embed, collection: Retrieval) -> Job:
    """nDCG at 10 of the documents that are most similar to each query, as in BEIR (arXiv 2104.08663)."""
    documents, relevant = list(collection.documents), collection.relevant
    queries = F.normalize(embed(list(collection.queries.values())), dim=1)  # (N, d)
    embeddings = F.normalize(embed(list(collection.documents.values())), dim=1)  # (D, d)
    near = nearest(queries, embeddings, NEIGHBOURS)  # (N, NEIGHBOURS)
    gains = [
        ndcg([relevant[query].get(documents[row], 0.0) for row in rows], [*relevant[query].values()])
        for query, rows in zip(collection.queries, near)
    ]
    sizes = {"queries": len(queries), "documents": len(documents)}
    return Job(sizes, {"nDCG at 10": mean_score(np.array(gains))})


def ndcg(found: list[float], grades: list[float]) -> float:
    """The discounted gain of the grades that were found, in order, as a share of the best that was possible."""

    def gain(values: list[float]) -> float:
        return sum(value / np.log2(rank + 2) for rank, value in enumerate(values[:NEIGHBOURS]))

    return gain(found) / gain(sorted(grades, reverse=True))
