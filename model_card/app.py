"""
A demo page of a sentence embedding model: compare and search sentences, and read the model's scores.

    pip install -r requirements.txt
    python app.py

`space.json`, beside this file, names the model and optionally a second one to compare it with.
"""

import base64
import csv
import io
import json
import re
import sys
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import gradio as gr
from sentence_transformers import SentenceTransformer, util
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers.utils import logging
from transformers.utils.hub import cached_file


logging.set_verbosity_error()  # it would report that the encoder's pretraining head is missing, which is expected

HERE = Path(__file__).parent
SPACE: dict[str, Any] = json.loads((HERE / "space.json").read_text(encoding="utf-8"))
COMPARED, SEARCHED = 20, 10_000  # sentences at a time
TABLE: dict[str, Any] = {"interactive": False, "wrap": True}

# The embedding is what the model's own code returns.
OF_CODE = {"text": {"method": "forward", "method_output_name": "pooler_output"}}
OWN_POOLING = {"modality_config": OF_CODE, "module_output_name": "sentence_embedding", "unpad_inputs": False}


# --- Models ----------------------------------------------------------------------------------------------------------


def source(name: str, revision: str | None) -> str:
    """The id of a model on the Hub, or its folder, which space.json names relative to this file."""
    return name if revision else str((HERE / name).resolve())


def load(name: str, revision: str | None, pooling: str | None, code: bool) -> SentenceTransformer:
    """
    A model of space.json. With a pooling ("mean" or "cls") it is an encoder. Without, its own code makes the embedding
    or, if that may not run, the modules of sentence-transformers that its files name. Code of a tokenizer never runs.
    """
    if revision and Path(name).exists():  # it would be read, whatever the revision
        raise OSError(f"{name} exists here and would be read instead of the Hub's: start the page elsewhere.")
    if pooling is None and not code:
        return SentenceTransformer(source(name, revision), revision=revision)
    options = {"revision": revision or "main", "trust_remote_code": pooling is None}
    encoder = Transformer(
        source(name, revision),
        model_kwargs={**options, "dtype": "float32"},
        config_kwargs={**options},
        processor_kwargs={**options, "trust_remote_code": False},
        **({} if pooling else OWN_POOLING),
    )
    if encoder.tokenizer.init_kwargs.get("model_max_length", 10**30) > encoder.max_seq_length:
        encoder.max_seq_length -= 2  # the tokenizer was saved without a limit; RoBERTa cannot use two of its positions
    pool = [Pooling(encoder.get_embedding_dimension(), pooling)] if pooling else []
    return SentenceTransformer(modules=[encoder, *pool])


def load_models() -> tuple[list[tuple[str, SentenceTransformer]], str | None]:
    """The models with their labels, and why there is no second one."""
    models, reason = [], SPACE["no_second_model"]
    for fields in SPACE["models"]:
        label = Path(source(fields["name"], fields["revision"])).name
        try:
            model = load(**fields)
            model.encode("Does it read?")
            models.append((label + (f", {fields['pooling']} pooling" if fields["pooling"] else ""), model))
        except Exception as error:  # the libraries raise a dozen different ones here
            failed = f"{fields['name']}, which space.json names, could not be loaded."
            if not models:
                sys.exit(f"app.py: {failed} {str(error).partition(chr(10))[0]}")
            print(f"app.py: {failed} {error}", file=sys.stderr)
            reason = f"No second model is shown: {fields['name']} could not be loaded."
    return models, reason


# --- Compare ---------------------------------------------------------------------------------------------------------


def lines(text: str) -> list[str]:
    """The non-empty lines, with single spaces. What UTF-8 cannot encode (half an emoji) becomes `?`."""
    valid = text.encode("utf-8", "replace").decode("utf-8")
    return [" ".join(line.split()) for line in valid.splitlines() if line.strip()]


def note(text: str) -> gr.Textbox:
    """A text box shows names of files as they are, not as Markdown or HTML."""
    return gr.Textbox(text, label="Note", visible=bool(text), interactive=False)


def cut(what: str, text: str, label: str, model: SentenceTransformer) -> list[str]:
    """A note if the model reads only the beginning of the text."""
    limit = model.max_seq_length
    too_long = len(model.tokenizer(text, verbose=False)["input_ids"]) > limit
    return [f"{what} is longer than the {limit} tokens that {label} reads; the rest is ignored."] if too_long else []


def compare(text: str) -> list[Any]:
    """A note, and the panels of the models."""
    sentences, notes = lines(text), []
    if len(sentences) < 2:
        notes.append("Type at least two sentences, one per line, to see a similarity.")
    if len(sentences) > COMPARED:
        notes.append(f"There are {len(sentences):,} lines; only the first {COMPARED} are compared.")
    sentences = sentences[:COMPARED]
    for model in MODELS:
        for row, sentence in enumerate(sentences, 1):
            notes += cut(f"Sentence {row}", sentence, *model)
    return [note("\n".join(notes)), *(part for model in MODELS for part in panel(*model, sentences))]


def panel(label: str, model: SentenceTransformer, sentences: list[str]) -> list[Any]:
    """The similarities and, of a model with a decoder, the tokens shaded by their errors, and the errors."""
    embeddings = model.encode(sentences, convert_to_tensor=True)
    values = model.similarity(embeddings, embeddings).tolist() if sentences else []  # (N, d), (N, d) -> (N, N)
    blue = [["", *(f"background: rgba(0, 114, 178, {v / 2:.2f})" for v in row), ""] for row in values]
    similarities = {
        "headers": ["", *map(str, range(1, len(values) + 1)), "sentence"],
        "data": [[n, *(f"{v:.3f}" for v in row), s] for n, (row, s) in enumerate(zip(values, sentences), 1)],
        "metadata": {"styling": blue},
    }
    shown = [gr.Dataframe(similarities, label=f"{label}: cosine similarities", **TABLE)]
    if getattr(model.transformers_model, "sentence_decoder", None) is None:
        return shown
    importance = [token_errors(model, sentence) for sentence in sentences]
    errors = [error for pairs in importance for _, error in pairs] or [0.0]
    most, spread = max(errors), max(errors) - min(errors) or 1.0
    tokens: list[tuple[str, float | None]] = []
    listed = []
    for n, pairs in enumerate(importance, 1):
        shades = [(token, 0.7 * (most - error) / spread) for token, error in pairs]  # the text is readable up to 0.7
        tokens += [(str(n), None), *shades]
        listed += [[n, token.strip(), f"{error:.4f}"] for token, error in pairs]
    about = "the stronger the colour, the smaller the reconstruction error: the embedding keeps more of the token"
    shown.append(gr.HighlightedText(tokens, label=f"{label}: {about}", elem_classes="tokens"))
    headers = ["sentence", "token", "error"]
    return [*shown, gr.Dataframe(listed, headers=headers, label=f"{label}: errors", max_height=250, **TABLE)]


def token_errors(model: SentenceTransformer, sentence: str) -> list[tuple[str, float]]:
    """Each token and its reconstruction error, in the mean over the bytes of a character."""
    tokenizer = model.tokenizer
    inputs = tokenizer(sentence, truncation=True, max_length=model.max_seq_length, return_tensors="pt")
    output = model.transformers_model(**inputs.to(model.device), output_reconstruction=True)
    difference = (output.reconstruction[0] - output.reconstruction_target[0]).detach()  # (T, d)
    ids, errors = output.content_input_ids[0].tolist(), difference.pow(2).mean(dim=1).tolist()
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}  # the only tokens of an empty text
    places = [place for place, kept in enumerate(output.content_mask[0]) if kept and ids[place] not in special]
    found, start = [], 0
    for end in range(1, len(places) + 1):
        text = tokenizer.decode([ids[place] for place in places[start:end]])
        # A replacement character means that some bytes of the character are still to come.
        if end == len(places) or not text.endswith("\N{REPLACEMENT CHARACTER}"):
            found.append((text, sum(errors[place] for place in places[start:end]) / (end - start)))
            start = end
    return found


# --- Search ----------------------------------------------------------------------------------------------------------


def columns(path: str | None) -> dict[str, list[str]]:
    """The texts of an uploaded file by column, of which a text file has one."""
    if path is None:
        return {}
    content = Path(path).read_bytes()
    try:
        if b"\0" in content:  # never in UTF-8 text, but in UTF-16 and most binary files
            raise ValueError
        text = content.decode("utf-8-sig")
        if Path(path).suffix.lower() not in (".csv", ".tsv"):
            return {"text": lines(text)}
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        header, *rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    except (ValueError, csv.Error):  # includes UnicodeDecodeError and, of an empty table, the missing header
        message = "cannot be read: upload UTF-8 text with one sentence per line, or a CSV file with a header."
        raise ValueError(f"{Path(path).name} {message}") from None
    return {
        name: [" ".join(cell.split()) for row in rows for cell in row[n : n + 1] if cell.strip()]
        for n, name in enumerate(header)
    }


def choice(path: str | None) -> gr.Dropdown:
    """The columns of an uploaded file, first chosen the one with the longest texts."""
    try:
        found = columns(path)
    except ValueError:  # the search says it
        found = {}
    longest = max(found, key=lambda name: sum(map(len, found[name])), default=None)
    return gr.Dropdown(list(found), value=longest, visible=len(found) > 1)


@lru_cache(maxsize=4)  # so that the next query embeds nothing but itself
def embedded(sentences: tuple[str, ...]) -> Any:
    return MODELS[0][1].encode(list(sentences), convert_to_tensor=True, show_progress_bar=True)


TRACKED = gr.Progress(track_tqdm=True)
NEAREST: dict[str, Any] = {"headers": ["cosine", "sentence"], "column_widths": ["25%", "75%"]}


def search(query: str, pasted: str, path: str | None, column: str | None, progress: Any = TRACKED) -> list[Any]:
    """A note, and the sentences nearest to the query."""
    wanted = " ".join(lines(query))
    try:
        found = columns(path)
        if len(found) > 1 and column not in found:
            raise ValueError(f"{Path(str(path)).name} has no column {column!r}: choose one of {', '.join(found)}.")
        sentences = lines(pasted) + found.get(str(column), next(iter(found.values()), []))
        if not sentences:
            raise ValueError("There are no sentences: paste some, one per line, or upload a file.")
        if not wanted:
            raise ValueError("Type a query.")
    except ValueError as error:
        return [note(str(error)), gr.Dataframe(visible=False)]
    label, model = MODELS[0]
    notes = cut("The query", wanted, label, model)
    if len(sentences) > SEARCHED:
        notes.append(f"There are {len(sentences):,} sentences; only the first {SEARCHED:,} are searched.")
    sentences = list(dict.fromkeys(sentences[:SEARCHED]))
    (best,) = util.semantic_search(model.encode([wanted], convert_to_tensor=True), embedded(tuple(sentences)))
    rows = [[f"{hit['score']:.3f}", sentences[hit["corpus_id"]]] for hit in best]
    heading = f"The nearest {len(rows)} of {len(sentences):,} sentences, by cosine similarity"
    return [note("\n".join(notes)), gr.Dataframe(rows, label=heading, visible=True, **NEAREST, **TABLE)]


# --- The page --------------------------------------------------------------------------------------------------------


def card(name: str, revision: str | None, **_: Any) -> str:
    """The sections of the model's card about scores, training and limits, with figures embedded."""

    file = partial(cached_file, source(name, revision), revision=revision, _raise_exceptions_for_missing_entries=False)

    def picture(found: re.Match[str]) -> str:
        path = file(found[1])
        return f"](data:image/png;base64,{base64.b64encode(Path(path).read_bytes()).decode()})" if path else found[0]

    path = file("README.md")
    text = re.sub(r"\A---\n.*?\n---\n", "", Path(path).read_text(encoding="utf-8") if path else "", flags=re.DOTALL)
    beginning, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    parts = [re.sub(r"^# .*", "", beginning, flags=re.MULTILINE)]
    parts += [f"## {s}" for s in sections if s.splitlines()[0] in ("Scores", "Training", "Limits and biases")]
    return re.sub(r"\]\((\w+\.png)\)", picture, "\n".join(parts))


MODELS, NO_SECOND_MODEL = load_models()
EXAMPLES: list[list[str]] = SPACE["examples"]
SENTENCES = [sentence for _, *others in EXAMPLES for sentence in others]
THEME = gr.themes.Base(primary_hue="sky", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
BUTTON = ("button_primary_background_fill" + end for end in ("", "_dark", "_hover", "_hover_dark"))
THEME.set(color_accent="*primary_700", **dict.fromkeys(BUTTON, "*primary_700"))
STYLE = """
.dark { --color-accent: var(--primary-400) }
.tokens .token-container:not(:has(.highlighted)) { flex-basis: 100%; font-weight: bold }
.card :is(table, p:has(img)) { display: block; overflow-x: auto; border: 0 }
.card :is(td, th) { overflow-wrap: normal; word-break: normal }
.card code { white-space: normal; overflow-wrap: anywhere }
.card img { width: 100%; min-width: 34rem; max-width: none; background: white }
"""

with gr.Blocks(title=SPACE["title"], analytics_enabled=False) as demo:
    gr.Markdown(SPACE["about"])
    with gr.Tab("Compare"):
        text = gr.Textbox("\n".join(EXAMPLES[0]), label="Sentences, one per line (Shift+Enter to compare)", lines=4)
        button = gr.Button("Compare", variant="primary")
        compared: list[Any] = [note("")]
        with gr.Row():
            for model in MODELS:
                with gr.Column(min_width=400):
                    compared += panel(*model, EXAMPLES[0])
        note(NO_SECOND_MODEL or "")
    with gr.Tab("Search"):
        pasted = gr.Textbox(
            "\n".join(SENTENCES), label=f"Sentences to search, one per line, up to {SEARCHED:,}", lines=4, max_lines=8
        )
        file = gr.File(label="More: a text or CSV file", height=150)
        column = gr.Dropdown(label="Column to search in", visible=False, allow_custom_value=True)
        query = gr.Textbox(EXAMPLES[0][0], label="Query")
        find = gr.Button("Search", variant="primary")
        found = search(query.value, pasted.value, None, None)
    with gr.Tab("The model"):
        gr.Markdown(card(**SPACE["models"][0]), elem_classes="card", latex_delimiters=[])
    # One request at a time: all users share the models.
    gr.on([button.click, text.submit], compare, text, compared, concurrency_id="models")
    gr.on([find.click, query.submit], search, [query, pasted, file, column], found, concurrency_id="models")
    file.change(choice, file, column)


if __name__ == "__main__":
    demo.launch(theme=THEME, css=STYLE, max_file_size="20mb", ssr_mode=False, footer_links=[])
