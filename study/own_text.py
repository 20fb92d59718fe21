"""
The study on people's own text: how tokens should be weighted, judged by labelled short texts whose labels the training
does not see.

    python -m study.own_text [--encoders ...] [--corpora ...] [--weightings ...] [--seeds 3] [--processes 2]
    python -m study.own_text --table

Each run trains one epoch on a corpus with one weighting of the tokens, and is a line of study/results/own_text.jsonl.
Labels score the even rows, which choices are made on, and the odd rows, which are reported: V-measure of k-means, and
the share of the ten nearest neighbours with the same label. Wikipedia has graded pairs instead. Finished runs are
skipped. "english" counts tokens in the English text that the program brings.

Shapes: N texts, d dimensions.
"""

import json
import lzma
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy.sparse import csr_matrix
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import v_measure_score
from sklearn.preprocessing import normalize
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from benchmarks.common import MAX_SEQ_LENGTH, PROJECT, QUIET
from configuration_sarcse import SarcseConfig
from modeling_sarcse import POOLERS, SarcseModel
from sarcse.data.general import general_counts
from sarcse.data.sts import load_sts
from sarcse.data.tokens import LONGEST, token_counts, tokenize
from sarcse.evaluation.comparison import correlations
from sarcse.evaluation.embedding import encode, measure, uniformity
from sarcse.evaluation.jobs import NEIGHBOURS, k_means, nearest
from sarcse.evaluation.report import markdown_table
from sarcse.loading import load_model
from sarcse.options import ENGLISH
from sarcse.training.arguments import SENTENCE_ENCODER_BUDGET, SarcseTrainingArguments
from sarcse.training.health import HealthCheck
from sarcse.training.record import versions
from sarcse.training.trainer import SarcseTrainer
from study import tried  # noqa: F401  # adds the poolers that were tried
from study.candidates import Halves
from study.lines import make_missing, parser_for_runs, read_lines
from study.reading import average
from study.run import TASKS, encoder_folder, mean_pooled, sick_pairs


LINES = PROJECT / "study" / "results" / "own_text.jsonl"
ENCODERS = ("roberta-mini-wiki", "roberta-tiny-wiki", "all-MiniLM-L6-v2")
WIKIPEDIA_SENTENCES = 20_032
LABELLED = ("stackoverflow", "banking77")
SAMPLE = 2_000  # texts for the candidates for a check without labels
TOPICS = 100


# --- The corpora -----------------------------------------------------------------------------------------------------


def read_labelled(path: Path) -> tuple[list[str], list[str]]:
    """Texts and labels."""
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        rows = [line.rstrip("\n").split("\t") for line in lines][1:]
    texts, labels = zip(*rows)
    return list(texts), list(labels)


def read_corpus(name: str, data: str) -> tuple[list[str], list[str] | None]:
    """The texts of a corpus, and their labels; Wikipedia has none."""
    if name == "wikipedia":
        with lzma.open(Path(data, "data", "wiki500k.txt.xz"), "rt", encoding="utf-8") as lines:
            return [line.strip() for line, _ in zip(lines, range(WIKIPEDIA_SENTENCES))], None
    if name.endswith("-long"):  # each text is four of the same label
        texts, labels = read_corpus(name.removesuffix("-long"), data)
        of: dict[str, list[str]] = {}
        for text, label in zip(texts, labels):
            of.setdefault(label, []).append(text)
        joined = [(" ".join(t[i : i + 4]), label) for label, t in of.items() for i in range(0, len(t) - 3, 4)]
        return [t for t, _ in joined], [label for _, label in joined]
    if name.endswith("-narrow"):  # texts of four labels, whose topics' names are more frequent
        texts, labels = read_corpus(name.removesuffix("-narrow"), data)
        kept = sorted(set(labels))[:4]
        rows = [(text, label) for text, label in zip(texts, labels) if label in kept]
        return [text for text, _ in rows], [label for _, label in rows]
    files = {
        "stackoverflow": "stackoverflow.tsv.xz",
        "banking77": "banking77_train.tsv.xz",
        "banking77-test": "banking77_test.tsv.xz",
    }
    return read_labelled(Path(data, "data", "jobs", files[name]))


# --- The weightings --------------------------------------------------------------------------------------------------

# Weights by each token's share of the corpus and of English text, and the share of the corpus' texts with that token,
# each `(vocabulary_size,)`.
Weighting = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def inverse(share: np.ndarray, smoothing: float) -> np.ndarray:
    return smoothing / (smoothing + share)


def information(share: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(share, share[share > 0].min()))


WEIGHTINGS: dict[str, Weighting] = {
    "uniform": lambda own, general, documents: np.ones_like(own),
    **{
        f"corpus-{a:g}": (lambda own, general, documents, a=a: inverse(own, a))
        for a in (1e-4, 3e-4, 1e-3, 3e-3, 5e-3, 1e-2, 3e-2)
    },
    **{
        f"english-{a:g}": (lambda own, general, documents, a=a: inverse(general, a))
        for a in (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
    },
    **{
        f"product-{a:g}": (lambda own, general, documents, a=a: inverse(own, a) * inverse(general, 1e-4))
        for a in (1e-3, 1e-2, 3e-2)
    },
    "self-information": lambda own, general, documents: information(own),
    "inverse-document-frequency": lambda own, general, documents: information(documents),
    "documents-0.001": lambda own, general, documents: inverse(documents, 1e-3),
    "mean-of-shares": lambda own, general, documents: inverse((own + general) / 2, 1e-4),
    "geometric-mean": lambda own, general, documents: np.sqrt(inverse(own, 1e-4) * inverse(general, 1e-4)),
    "corpus-capped-10": lambda own, general, documents: np.maximum(inverse(own, 1e-4), 0.1),
    "corpus-capped-3": lambda own, general, documents: np.maximum(inverse(own, 1e-4), 1 / 3),
    # Frequent here and there: the smaller of both shares.
    "smaller-share": lambda own, general, documents: inverse(np.minimum(own, general), 1e-4),
}


def shares(tokens: Dataset, size: int, special: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Each token's share of all tokens, and the share of texts that have it: `(vocabulary_size,)` both."""
    counts = token_counts(tokens, size, special)
    documents = np.bincount([token for ids in tokens["input_ids"] for token in set(ids)], minlength=size)
    documents[special] = 0
    return counts / counts.sum(), documents / len(tokens)


# --- Scores ----------------------------------------------------------------------------------------------------------


def near_texts(embeddings: np.ndarray) -> np.ndarray:
    """The rows of each text's nearest neighbours, itself left out: `(N, d)` -> `(N, NEIGHBOURS)`."""
    vectors = torch.from_numpy(embeddings)
    return nearest(vectors, vectors, NEIGHBOURS, leave_out_own=True)


def label_scores(embeddings: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """V-measure of k-means with as many clusters as labels, and precision at 10, both x 100."""
    clusters = k_means(embeddings, len(set(labels)))
    same = labels[near_texts(embeddings)] == labels[:, None]  # (N, 10)
    return {"v": 100 * v_measure_score(labels, clusters), "p10": 100 * same.mean()}


def sharing(vectors: Any, near: np.ndarray) -> float:
    """Mean cosine similarity, in percent, of each text's `vectors` and those of its neighbours, `(N, number)`."""
    vectors = normalize(vectors)
    total = sum(vectors[column] for column in near.T)  # of each text's neighbours
    return 100 * float(csr_matrix(vectors).multiply(csr_matrix(total)).sum() / near.size)


class Candidates:
    """
    Candidates for a check that sees a training do harm, without labels: numbers of a model and some of the texts.

    Args:
        texts (`list[str]`): N texts.
        all_texts (`list[str]`): The corpus, whose latent semantic analysis gives the topics.
        tokenizer (`PreTrainedTokenizerBase`): The encoder's own.
        config (`SarcseConfig`): The model's.
    """

    def __init__(
        self, texts: list[str], all_texts: list[str], tokenizer: PreTrainedTokenizerBase, config: SarcseConfig
    ) -> None:
        self.texts, self.tokenizer = texts, tokenizer
        words = [text.split() for text in texts]
        self.first = [" ".join(w[: len(w) // 2]) or text for w, text in zip(words, texts)]
        self.second = [" ".join(w[len(w) // 2 :]) or text for w, text in zip(words, texts)]
        self.rows = tokenizer(texts, truncation=True, max_length=min(LONGEST, tokenizer.model_max_length))["input_ids"]
        rare: dict[str, Any] = {"max_df": 0.1, "dtype": np.float32}  # no word of more than a tenth of the texts
        self.words = TfidfVectorizer(dtype=np.float32).fit_transform(texts)
        self.rare_words = TfidfVectorizer(**rare).fit_transform(texts)
        self.rare_tokens = TfidfVectorizer(analyzer=lambda ids: ids, **rare).fit_transform(self.rows)
        self.words_of_second = TfidfVectorizer(**rare).fit_transform(self.second)
        vectorizer = TfidfVectorizer(min_df=2, sublinear_tf=True, dtype=np.float32)
        directions = TruncatedSVD(TOPICS, random_state=0).fit(vectorizer.fit_transform(all_texts))
        self.topics = directions.transform(vectorizer.transform(texts))
        general = general_counts(ENGLISH, tokenizer, config, config.encoder_config.vocab_size)
        some = np.arange(min(512, len(texts))) * len(texts) // min(512, len(texts))
        self.health = HealthCheck([self.rows[row] for row in some], config, general)

    def __call__(self, model: SarcseModel) -> dict[str, float]:
        def embed(texts: list[str]) -> np.ndarray:
            return F.normalize(encode(model, self.tokenizer, texts), dim=1).numpy()

        embeddings = embed(self.texts)
        near, of_first = near_texts(embeddings), near_texts(embed(self.first))
        singular = np.linalg.svd(embeddings - embeddings.mean(axis=0), compute_uv=False) ** 2
        spread = singular / singular.sum()
        clusters = [KMeans(20, n_init=2, random_state=seed).fit_predict(embeddings) for seed in (1, 2)]
        return {
            "words of neighbours": sharing(self.words, near),
            "rarer words of neighbours": sharing(self.rare_words, near),
            "rarer tokens of neighbours": sharing(self.rare_tokens, near),
            "topics of neighbours": sharing(self.topics, near),
            "words of the other half": sharing(self.words_of_second, of_first),
            "halves found": Halves(self.rows[:: len(self.rows) // 256], model.config)(model),
            "halves found among all": Halves(self.rows, model.config)(model),
            "health": self.health(model),
            "clusters found again": 100 * v_measure_score(*clusters),
            "dimensions in use": float(np.exp(-(spread * np.log(spread + 1e-12)).sum())),
            "uniformity": -(uniformity(torch.from_numpy(embeddings)) or 0.0),
        }


def scores(
    model: SarcseModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], labels: list[str] | None, data: str
) -> dict[str, Any]:
    if labels is None:
        sts = {task: load_sts(task, f"{data}/data/senteval") for task in TASKS}
        sts |= {"STSB dev": load_sts("STSB", f"{data}/data/senteval", "dev"), "SICK dev": sick_pairs(data)}
        similarities = measure(partial(encode, model, tokenizer), sts).similarities
        gold = {task: np.array(pairs["score"][:]) for task, pairs in sts.items()}
        return {"sts": {task: correlations(similarities[task], gold[task]).spearman for task in sts}}
    embeddings = F.normalize(encode(model, tokenizer, texts), dim=1).numpy()
    of = np.array(labels)
    halves = {"choose": slice(0, None, 2), "report": slice(1, None, 2)}
    return {name: label_scores(embeddings[half], of[half]) for name, half in halves.items()}


# --- Runs ------------------------------------------------------------------------------------------------------------


def arguments_of(run: dict[str, Any], folder: str) -> SarcseTrainingArguments:
    fields: dict[str, Any] = {"seed": run["seed"], "max_seq_length": MAX_SEQ_LENGTH, "health_sentences": 0}
    if run["encoder"] == "all-MiniLM-L6-v2":
        fields["learning_rate_budget"] = SENTENCE_ENCODER_BUDGET
    if run["weighting"] == "simcse":
        fields |= {"reconstruction_weight": 0}
    if run["weighting"] == "contrast":
        fields |= {"reconstruction_weight": 0, "view_dropout": 0.1, "learning_rate": 1e-4}
        fields |= {"learning_rate_budget": fields.get("learning_rate_budget", 0.003)}
    fields |= run.get("fields", {})
    return SarcseTrainingArguments(folder, **QUIET, **fields)


def one_run(run: dict[str, Any], data: str) -> dict[str, Any]:
    texts, labels = read_corpus(run["corpus"], data)
    pooler = run.get("pooler") or ("mean" if run["encoder"] == "all-MiniLM-L6-v2" else "autoencoder")
    pooler = {"simcse": "cls", "contrast": "mean", "none": "mean"}.get(run["weighting"], pooler)
    torch.manual_seed(run["seed"])
    folder = str(encoder_folder(run["encoder"], data))
    model, tokenizer = load_model(folder, pooler=pooler, **run.get("architecture", {}))
    config = model.config
    vocabulary = config.encoder_config.vocab_size
    rows = Dataset.from_dict({"text": texts})
    tokens = tokenize(rows, tokenizer, MAX_SEQ_LENGTH)
    own, documents = shares(tokens, vocabulary, config.special_token_ids)
    candidates = Candidates(texts[:: max(1, len(texts) // SAMPLE)][:SAMPLE], texts, tokenizer, config)
    numbers = {"before": candidates(model.eval())}
    torch.manual_seed(run["seed"])
    started = time.time()
    if run["weighting"] != "none":
        weights = None
        if run["weighting"] in WEIGHTINGS:
            general = general_counts(ENGLISH, tokenizer, config, vocabulary)
            found = WEIGHTINGS[run["weighting"]](own, general / general.sum(), documents)
            weights = torch.from_numpy(found).float()
        with tempfile.TemporaryDirectory() as folder:
            SarcseTrainer(
                model,
                arguments_of(run, folder),
                train_dataset=texts,
                processing_class=tokenizer,
                token_weights=weights,
            ).train()
    trained = time.time() - started
    numbers["after"] = candidates(model.eval())
    found = scores(model, tokenizer, texts, labels, data)
    if model.sentence_encoder.has_layers:
        with mean_pooled(model):
            found["mean_pooled"] = scores(model, tokenizer, texts, labels, data)
    return {**found, "candidates": numbers, "seconds": round(trained, 1)}


def key_of(run: dict[str, Any]) -> str:
    """Identifies a run."""
    names = ("encoder", "corpus", "weighting", "pooler", "architecture", "fields", "seed")
    return json.dumps([run.get(name) for name in names])


def untrained(line: dict[str, Any], lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The line of the same encoder and corpus before training, under mean pooling."""
    same = ("encoder", "corpus")
    return next(o for o in lines if o["weighting"] == "none" and all(o[name] == line[name] for name in same))


def table(lines: list[dict[str, Any]]) -> str:
    """The reported half of each corpus: V-measure and precision at 10; and the average of four STS tasks."""
    corpora = sorted({line["corpus"] for line in lines} - {"wikipedia"})
    rows = [["encoder", "weighting", "seeds", *(f"{corpus}, {what}" for corpus in corpora for what in ("V", "P@10"))]]
    rows[0].append("STS after Wikipedia")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        other = {**line.get("architecture", {}), **line.get("fields", {})}
        pooler = [line["pooler"]] if "pooler" in line else []
        setting = ", ".join([line["weighting"], *pooler, *(f"{name} {value:g}" for name, value in other.items())])
        groups.setdefault((line["encoder"], setting), []).append(line)
    for (encoder, setting), of in sorted(groups.items()):
        cells = []
        for corpus in corpora:
            found = [line["report"] for line in of if line["corpus"] == corpus]
            cells += [f"{np.mean([scores[key] for scores in found]):.1f}" if found else "" for key in ("v", "p10")]
        sts = [average(line) for line in of if line["corpus"] == "wikipedia"]
        cells.append(f"{np.mean(sts):.2f}" if sts else "")
        rows.append([encoder, setting, str(len({line["seed"] for line in of})), *cells])
    return markdown_table(rows)


# The forms of the model, by pooler.
FORMS = {
    "mean": "mean pooling + reconstruction",
    "autoencoder": "TextCNN of contextual vectors, added to the mean",
    "weighted_context": "TextCNN weighs contextual vectors",
    "one_weight_context": "the same, one weight per token",
    "equal_weights": "mean of words added, no TextCNN",
    "one_weight": "TextCNN weighs words, one weight per word",
    "words": "SARCSE: TextCNN weighs words",
}


def form_scores(of: list[dict[str, Any]], part: str | None = None) -> list[float]:
    """V and P@10 on Stack Overflow and Banking77, and STS, in the mean over seeds; NaN without runs."""
    found: dict[str, list[list[float]]] = {}
    for line in of:
        scores = line if part is None else line.get(part, {})
        if "report" in scores:
            found.setdefault(line["corpus"], []).append([scores["report"]["v"], scores["report"]["p10"]])
        elif "sts" in scores:
            found.setdefault(line["corpus"], []).append([average(scores)])
    widths = {"stackoverflow": 2, "banking77": 2, "wikipedia": 1}
    return [x for corpus, n in widths.items() for x in np.mean(found.get(corpus, [[np.nan] * n]), axis=0)]


def mean_of_jobs(scores: list[float]) -> float:
    """Stack Overflow, Banking77 and STS count the same."""
    return float(np.mean([np.mean(scores[:2]), np.mean(scores[2:4]), scores[4]]))


def forms_table(lines: list[dict[str, Any]]) -> str:
    """What each form of the model reaches, and what is left of it without the TextCNN: its encoder's mean."""
    heads = ["Stack Overflow, V", "P@10", "Banking77, V", "P@10", "STS", "mean", "mean without the TextCNN"]
    rows = [["encoder", "form", "seeds", *heads]]
    plain = [line for line in lines if "fields" not in line and "architecture" not in line]
    for encoder in ENCODERS:
        of_encoder = [line for line in plain if line["encoder"] == encoder]
        groups = {"untrained, mean pooling": [line for line in of_encoder if line["weighting"] == "none"]}
        for pooler, name in FORMS.items():
            groups[name] = [line for line in of_encoder if line.get("pooler") == pooler]
        for name, of in groups.items():
            scores, without = form_scores(of), mean_of_jobs(form_scores(of, "mean_pooled"))
            if not np.isnan(mean_of_jobs(scores)):
                cells = [f"{score:.1f}" for score in scores[:4]] + [f"{scores[4]:.2f}", f"{mean_of_jobs(scores):.2f}"]
                left = "" if np.isnan(without) else f"{without:.2f}"
                rows.append([encoder, name, str(len({line["seed"] for line in of})), *cells, left])
    return markdown_table(rows)


MARGIN = 0.5  # a training is good or bad if a score is so much above or below the untrained encoder's


def change(line: dict[str, Any], lines: list[dict[str, Any]]) -> list[float]:
    """What the training changed: V-measure and precision at 10 of both halves, or STS-B dev."""
    before = untrained(line, lines)
    if line["corpus"] == "wikipedia":
        return [line["sts"]["STSB dev"] - before["sts"]["STSB dev"]]
    halves = ("choose", "report")
    return [float(np.mean([line[half][key] - before[half][key] for half in halves])) for key in ("v", "p10")]


def candidates_table(lines: list[dict[str, Any]]) -> str:
    """How many bad trainings each candidate finds, and how many good ones it rejects, by a fall below a share."""
    trained = [line for line in lines if line["weighting"] != "none" and "candidates" in line and "pooler" not in line]
    bad = [line for line in trained if min(change(line, lines)) < -MARGIN]
    good = [line for line in trained if line not in bad and max(change(line, lines)) > MARGIN]

    def fallen(name: str, share: float, of: list[dict[str, Any]]) -> str:
        start = [untrained(line, lines)["candidates"]["before"][name] for line in of]
        return str(sum(line["candidates"]["after"][name] < share * before for line, before in zip(of, start)))

    rows = [["candidate"]]
    for share in (1, 0.85):
        rows[0] += [f"below {share:g}: of {len(bad)} bad", f"of {len(good)} good"]
    for name in bad[0]["candidates"]["after"]:
        rows.append([name, *(fallen(name, share, of) for share in (1, 0.85) for of in (bad, good))])
    return markdown_table(rows)


def main() -> None:
    parser = parser_for_runs(str(__doc__), seeds=1)
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS))
    parser.add_argument("--corpora", nargs="+", default=["stackoverflow", "banking77", "wikipedia"])
    parser.add_argument("--weightings", nargs="+", default=["none", *WEIGHTINGS])
    parser.add_argument("--pooler", choices=[*POOLERS])
    parser.add_argument("--architecture", type=json.loads, help="Fields of SarcseConfig.")
    parser.add_argument("--fields", type=json.loads, help="Fields of SarcseTrainingArguments.")
    arguments = parser.parse_args()
    if arguments.table:
        print(*(made(read_lines(LINES)) for made in (table, candidates_table, forms_table)), sep="\n\n")
        return
    if arguments.run:
        print(json.dumps({**one_run(arguments.run, arguments.data), "versions": versions()}))
        return
    given = [name for name in ("pooler", "architecture", "fields") if getattr(arguments, name)]
    runs = [
        {"encoder": encoder, "corpus": corpus, "weighting": weighting, "seed": seed}
        | {name: getattr(arguments, name) for name in given}
        for seed in range(1, arguments.seeds + 1)
        for encoder in arguments.encoders
        for weighting in arguments.weightings
        for corpus in arguments.corpora
        if seed == 1 or weighting != "none"
    ]
    make_missing("study.own_text", LINES, runs, key_of, arguments.data, arguments.threads, arguments.processes)


if __name__ == "__main__":
    main()
