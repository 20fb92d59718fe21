"""
A demo page of a sentence embedding model: compare and search sentences, and read the model's scores.

    pip install -r requirements.txt
    python app.py

`space.json`, beside this file, names the model and optionally a second one to compare it with.

Shapes: N sentences, L tokens, d dimensions.
"""

import base64
import html
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from torch.nn import functional as F
from transformers import (
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    AutoTokenizer,
    DataCollatorWithPadding,
)
from transformers.utils import logging
from transformers.utils.hub import cached_file


logging.set_verbosity_error()  # it would report that the encoder's pretraining head is missing, which is expected

HERE = Path(__file__).parent
SPACE: dict[str, Any] = json.loads((HERE / "space.json").read_text(encoding="utf-8"))

COMPARED = 20  # sentences at a time, so that the matrix stays readable
SEARCHED = 10_000  # sentences at a time
NEAREST = 10  # results of a search
SHADED = 32  # tokens of a sentence if there is no decoder, as each needs a forward pass; the decoder's default too
BATCH = 32  # sentences per forward pass
REMEMBERED = 50_000  # cached embeddings: 150 MB with 768 dimensions


# --- Models ----------------------------------------------------------------------------------------------------------


class Model:
    """
    A model and the embeddings that it has made.

    Args:
        name (`str`): Its id on the Hub or, without a revision, its folder relative to this file.
        revision (`str`, *optional*): Commit on the Hub.
        pooling (`str`, *optional*): "mean" or "cls". Default: the model's own code makes the embedding.
        code (`bool`): The model's own code may run.

    Raises:
        Exception: whatever transformers raises if it cannot be loaded.
    """

    def __init__(self, name: str, revision: str | None, pooling: str | None, code: bool) -> None:
        if revision and Path(name).exists():  # transformers would read it, whatever the revision
            raise OSError(f"{name} exists here and would be read instead of the Hub's: start the page elsewhere.")
        self.source = name if revision else str((HERE / name).resolve())
        self.revision, self.pooling = revision, pooling
        self.label = Path(self.source).name + (f", {pooling} pooling" if pooling else "")
        # The model's code runs only if the embedding needs it, and from the Hub only at the pinned commit. Code of the
        # tokenizer never runs: with the encoder's configuration none is needed.
        options: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": code and pooling is None}
        config = AutoConfig.from_pretrained(self.source, **options)
        of_encoder = type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING  # T5 and the like: the encoder alone
        auto_class: Any = AutoModelForTextEncoding if of_encoder else AutoModel
        self.network = auto_class.from_pretrained(self.source, dtype=torch.float32, **options).eval()
        options |= {"config": getattr(config, "encoder_config", config), "trust_remote_code": False}
        self.tokenizer = AutoTokenizer.from_pretrained(self.source, **options)
        positions = getattr(config, "max_position_embeddings", None) or -1
        if 0 < positions < self.tokenizer.model_max_length:  # the tokenizer was saved without a limit
            self.tokenizer.model_max_length = positions - 2  # RoBERTa cannot use two of its positions
        self.pad = DataCollatorWithPadding(self.tokenizer)
        self.has_decoder = getattr(self.network, "sentence_decoder", None) is not None
        self.shaded = self.network.config.decoder_length if self.has_decoder else SHADED
        self.known: dict[str, torch.Tensor] = {}
        self.embed(["Does it read?"])

    def file(self, name: str) -> Path | None:
        """A file beside the model; None if there is none."""
        options: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
        path = cached_file(self.source, name, revision=self.revision, **options)
        return Path(path) if path else None

    @torch.no_grad()
    def vectors(self, token_ids: list[list[int]]) -> torch.Tensor:
        """One forward pass: from the token ids of N sentences to embeddings of length 1, `(N, d)`."""
        batch = self.pad([{"input_ids": ids} for ids in token_ids])
        output = self.network(**batch)
        if self.pooling is None:
            embeddings = output.pooler_output
        elif self.pooling == "cls":
            embeddings = output.last_hidden_state[:, 0]  # (N, L, d) -> (N, d)
        else:  # the sum: after normalisation it equals the mean
            embeddings = (output.last_hidden_state * batch["attention_mask"].unsqueeze(-1)).sum(dim=1)
        return F.normalize(embeddings, dim=1)

    def embed(self, sentences: list[str], track: Callable[[Iterable[int]], Iterable[int]] = iter) -> torch.Tensor:
        """Embeddings of length 1, `(N, d)`. Only new sentences are computed; `track` iterates over the batches."""
        new = [sentence for sentence in dict.fromkeys(sentences) if sentence not in self.known]
        token_ids = self.tokenizer(new, truncation=True)["input_ids"] if new else []
        by_length = sorted(range(len(new)), key=lambda row: -len(token_ids[row]))  # for little padding
        for start in track(range(0, len(new), BATCH)):
            rows = by_length[start : start + BATCH]
            self.known.update(zip((new[row] for row in rows), self.vectors([token_ids[row] for row in rows])))
        embeddings = torch.stack([self.known[sentence] for sentence in sentences])
        for oldest in list(self.known)[:-REMEMBERED]:
            del self.known[oldest]
        return embeddings

    def is_cut(self, sentence: str) -> bool:
        """Whether the model reads only the beginning of the sentence."""
        return len(self.tokenizer(sentence, verbose=False)["input_ids"]) > self.tokenizer.model_max_length

    def importance(self, sentences: list[str]) -> list[list[tuple[str, float]]]:
        """
        The tokens of each sentence, each with a number. With a decoder: the reconstruction error, which is small for
        an important token. Without: how far the embedding moves when the token is removed.
        """
        if self.has_decoder:
            return [self.errors(sentence) for sentence in sentences]
        return [self.movements(sentence) for sentence in sentences]

    @torch.no_grad()
    def errors(self, sentence: str) -> list[tuple[str, float]]:
        """For each of the first tokens: its reconstruction error, in the mean over the bytes of a character."""
        encoded = self.tokenizer(sentence, truncation=True)
        output = self.network(**self.pad([{"input_ids": encoded["input_ids"]}]), output_reconstruction=True)
        difference = output.reconstruction[0] - output.reconstruction_target[0]  # (T, d)
        ids, errors = output.content_input_ids[0].tolist(), difference.pow(2).mean(dim=1).tolist()
        special = {*self.tokenizer.all_special_ids} - {self.tokenizer.unk_token_id}  # the only tokens of an empty text
        content = [place for place, kept in enumerate(output.content_mask[0]) if kept and ids[place] not in special]
        characters = self.characters(ids, content)
        return [(text, sum(errors[place] for place in places) / len(places)) for text, places in characters]

    def movements(self, sentence: str) -> list[tuple[str, float]]:
        """For each of the first tokens: 1 - cosine between the embeddings with and without it."""
        encoded = self.tokenizer(sentence, truncation=True, return_special_tokens_mask=True)
        ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
        characters = self.characters(ids, [place for place in range(len(ids)) if not special[place]])[:SHADED]
        without = [[ids[place] for place in range(len(ids)) if place not in gone] for _, gone in characters]
        whole, *others = self.vectors([ids, *without])
        return [(text, max(1 - float(whole @ other), 0.0)) for (text, _), other in zip(characters, others)]

    def characters(self, ids: list[int], places: list[int]) -> list[tuple[str, list[int]]]:
        """Text and positions of each token; tokens that are bytes of one character are merged."""
        found, start = [], 0
        for end in range(1, len(places) + 1):
            text = self.tokenizer.decode([ids[place] for place in places[start:end]])
            # A replacement character marks a character whose bytes are still incomplete.
            if end == len(places) or not text.endswith("\N{REPLACEMENT CHARACTER}"):
                found.append((text, places[start:end]))
                start = end
        return found


def load_models() -> tuple[list[Model], str | None]:
    """The model, the second one if it can be loaded, and otherwise the reason."""
    (first, *second), reason = SPACE["models"], SPACE["no_second_model"]
    try:
        models = [Model(**first)]
    except (OSError, ValueError) as error:
        sys.exit(f"app.py: {first['name']}, which space.json names, could not be loaded. {str(error).splitlines()[0]}")
    try:
        models += [Model(**fields) for fields in second]
    except Exception as error:  # transformers raises a dozen different exceptions here
        print(f"{second[0]['name']}: {error}", file=sys.stderr)
        reason = f"No second model is shown: {second[0]['name']} could not be loaded."
    return models, reason


# --- Compare ---------------------------------------------------------------------------------------------------------


def lines(text: str) -> list[str]:
    """The non-empty lines, with single spaces. What UTF-8 cannot encode (half an emoji) becomes `?`."""
    valid = text.encode("utf-8", "replace").decode("utf-8")
    return [" ".join(line.split()) for line in valid.splitlines() if line.strip()]


def note(text: str) -> str:
    return f'<p class="note" role="status">{html.escape(text)}</p>'


def shade(share: float) -> str:
    """A share from 0 to 1 for the style sheet, which mixes a colour with the background accordingly."""
    return f'style="--shade: {100 * min(max(share, 0), 1):.0f}%"'


def compare(text: str) -> str:
    """Every model's similarities and tokens, side by side."""
    sentences = lines(text)
    if not sentences:
        return note("Type at least one sentence, preferably two, one per line.")
    notes = []
    if len(sentences) == 1:
        notes.append(note("Add a second sentence on a new line to see a similarity."))
    if len(sentences) > COMPARED:
        notes.append(note(f"There are {len(sentences):,} lines; only the first {COMPARED} are compared."))
    panels = [panel(model, sentences[:COMPARED]) for model in MODELS]
    if NO_SECOND_MODEL:
        notes.append(note(NO_SECOND_MODEL))
    return f'{"".join(notes)}<div class="panels">{"".join(panels)}</div>'


def panel(model: Model, sentences: list[str]) -> str:
    parts = [f"<h3>{html.escape(model.label)}</h3>"]
    parts += [note(cut_note(f"Sentence {row}", model)) for row, s in enumerate(sentences, 1) if model.is_cut(s)]
    if len(sentences) > 1:
        embeddings = model.embed(sentences)
        parts.append(matrix(sentences, (embeddings @ embeddings.T).tolist()))  # (N, d) @ (d, N) -> (N, N)
    parts.append(tokens(model, sentences))
    return f'<section class="panel" aria-label="{html.escape(model.label)}">{"".join(parts)}</section>'


def cut_note(what: str, model: Model) -> str:
    limit = model.tokenizer.model_max_length
    return f"{what} is longer than the {limit} tokens that this model reads; the rest is ignored."


def matrix(sentences: list[str], similarities: list[list[float]]) -> str:
    numbers = "".join(f'<th scope="col">{column}</th>' for column in range(1, len(sentences) + 1))
    rows = []
    for row, (sentence, values) in enumerate(zip(sentences, similarities), 1):
        short = html.escape(sentence[:300])
        cells = "".join(f"<td {shade(value)}>{value:.3f}</td>" for value in values)
        rows.append(f'<tr><th scope="row" title="{short}">{row} <bdi>{short}</bdi></th>{cells}</tr>')
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Similarities"><table class="matrix"><caption>Cosine '
        f"similarities</caption><tr><th></th>{numbers}</tr>{''.join(rows)}</table></div>"
    )


LEGENDS = {
    True: "A stronger colour means a smaller reconstruction error: the embedding preserves more of that token.",
    False: "A stronger colour means that the embedding moves further (1 - cosine) when that token is removed.",
}


def tokens(model: Model, sentences: list[str]) -> str:
    """The sentences with tokens shaded by importance; the number shows on hover, and all numbers are listed below."""
    importance = model.importance(sentences)
    numbers = [number for pairs in importance for _, number in pairs] or [0.0]
    least, most = (max(numbers), min(numbers)) if model.has_decoder else (min(numbers), max(numbers))
    shaded, listed = [], []
    for sentence, pairs in zip(sentences, importance):
        spans, entries = [], []
        for (space, text), (_, number) in zip(spaced(sentence, [text for text, _ in pairs]), pairs):
            share = (number - least) / (most - least) if most != least else 0.0
            about = f'class="token" tabindex="-1" data-number="{number:.4f}" {shade(share)}'
            spans.append(f"{space}<span {about}>{html.escape(text)}</span>")
            entries.append(f"<bdi>{html.escape(text)}</bdi> {number:.4f}")
        shaded.append(f"<li><bdi>{''.join(spans) or 'No tokens.'}</bdi></li>")
        listed.append(f"<li>{', '.join(entries)}</li>")
    return (
        f'<ol class="sentences">{"".join(shaded)}</ol><p class="small">{LEGENDS[model.has_decoder]} Point at a token '
        f"to see its number. At most {model.shaded} tokens per sentence are shown.</p>"
        f"<details><summary>All numbers</summary><ol>{''.join(listed)}</ol></details>"
    )


def spaced(sentence: str, texts: list[str]) -> list[tuple[str, str]]:
    """Tokens without their tokenizer's markers, each with what precedes it in the sentence: a space or nothing."""
    found, rest = [], sentence.lower()
    for text in texts:
        bare = text.strip().removeprefix("##") or text
        before, here, after = rest.partition(bare.lower())
        found.append((" " if before or not here else "", bare))
        rest = after if here else rest
    return found


# --- Search ----------------------------------------------------------------------------------------------------------


def read_lines(path: str) -> list[str]:
    """
    The sentences of an uploaded file.

    Raises:
        ValueError: it is not a text file.
    """
    content = Path(path).read_bytes()
    try:
        if b"\0" in content:  # never in UTF-8 text, but in UTF-16 and most binary files
            raise ValueError
        return lines(content.decode("utf-8-sig"))
    except ValueError:  # includes UnicodeDecodeError
        raise ValueError(
            f"{Path(path).name} is not a UTF-8 text file: upload one with one sentence per line."
        ) from None


def search(query: str, pasted: str, path: str | None, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
    """The sentences nearest to the query. Known sentences are not embedded again."""
    try:
        sentences = lines(pasted) + (read_lines(path) if path else [])
    except ValueError as error:
        return note(str(error))
    if not sentences:
        return note("Paste the sentences to search, one per line, or upload them as a text file.")
    notes = []
    if len(sentences) > SEARCHED:
        notes.append(note(f"There are {len(sentences):,} sentences; only the first {SEARCHED:,} are searched."))
    sentences = list(dict.fromkeys(sentences[:SEARCHED]))
    model = MODELS[0]
    embeddings = model.embed(sentences, lambda steps: progress.tqdm(steps, desc="Embedding", unit="batches"))
    wanted = " ".join(lines(query))
    if not wanted:
        return "".join([*notes, note(f"{len(sentences):,} sentences are ready: type a query.")])
    if model.is_cut(wanted):
        notes.append(note(cut_note("The query", model)))
    similarities = embeddings @ model.embed([wanted])[0]  # (N, d) @ (d,) -> (N,)
    best = similarities.topk(min(NEAREST, len(sentences)))
    found = [
        f'<li><span class="score" {shade(value)}>{value:.3f}</span> <bdi>{html.escape(sentences[row])}</bdi></li>'
        for value, row in zip(best.values.tolist(), best.indices.tolist())
    ]
    heading = f"The nearest {len(found)} of {len(sentences):,} sentences, by cosine similarity"
    return f'{"".join(notes)}<p class="small">{heading}</p><ol class="found">{"".join(found)}</ol>'


# --- The model -------------------------------------------------------------------------------------------------------


SECTIONS = ("Scores", "Training", "Limits and biases")


def card(model: Model) -> str:
    """The sections of the model's card about scores, training and limits, with figures embedded."""
    path = model.file("README.md")
    text = re.sub(r"\A---\n.*?\n---\n", "", path.read_text(encoding="utf-8"), flags=re.DOTALL) if path else ""
    beginning, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    parts = [re.sub(r"^# .*", "", beginning, flags=re.MULTILINE)]
    parts += [f"## {section}" for section in sections if section.splitlines()[0] in SECTIONS]
    return re.sub(r"\]\((\w+\.png)\)", lambda found: f"]({picture(model, found[1])})", "\n".join(parts))


def picture(model: Model, name: str) -> str:
    path = model.file(name)
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" if path else name


# --- The page --------------------------------------------------------------------------------------------------------


BLUE, VERMILION, _, _, _, SKY, _ = SPACE["colors"]
THEME = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(
    color_accent=BLUE,
    link_text_color=BLUE,
    link_text_color_dark=SKY,
    loader_color=BLUE,
    loader_color_dark=SKY,
    input_border_color_focus=BLUE,
    input_border_color_focus_dark=SKY,
    button_primary_background_fill=BLUE,
    button_primary_background_fill_dark=BLUE,
    button_primary_background_fill_hover=BLUE,
    button_primary_background_fill_hover_dark=BLUE,
    button_primary_text_color="white",
    button_primary_text_color_dark="white",
)
# Shades are mixed with the background, so that the same text colour is readable in light and dark mode.
STYLE = f"""
.dark {{ --color-accent: {SKY} }}
.panels {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1.5rem }}
.panel, .found {{ --hue: {BLUE} }}
.panel + .panel {{ --hue: {VERMILION} }}
.panel {{ min-width: 0; border-top: 4px solid var(--hue); padding-top: 0.5rem }}
.matrix td, .token, .score {{
    background: color-mix(in srgb, var(--hue) calc(0.7 * var(--shade)), transparent);
    border-radius: 3px;
}}
.wide {{ overflow-x: auto }}
.wide .matrix {{ border: 0; border-collapse: separate; border-spacing: 2px; width: auto }}
.matrix caption {{ text-align: start; font-weight: 600 }}
.wide .matrix :is(td, th) {{ border: 0; padding: 0.35rem 0.45rem; font-variant-numeric: tabular-nums }}
.score {{ padding: 0.1rem 0.45rem; font-variant-numeric: tabular-nums }}
.matrix th {{ font-weight: 400; max-width: 11rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }}
.matrix th[scope=col] {{ text-align: center }}
.matrix th[scope=row] {{ padding-inline-start: 0 }}
.sentences {{ font-size: 1.15rem; line-height: 2 }}
.token {{ position: relative; padding: 0.2rem 0.1rem; margin-inline-end: 1px }}
.token:hover::after, .token:focus::after {{
    content: attr(data-number);
    position: absolute; bottom: 100%; left: 50%; translate: -50%; z-index: 9;
    padding: 0 0.4rem; border-radius: 3px; font-size: 0.85rem; line-height: 1.8; white-space: nowrap;
    background: var(--body-text-color); color: var(--body-background-fill);
}}
.found li {{ margin: 0.6rem 0; line-height: 1.8 }}
.sentences, .found, details ol {{ list-style: decimal; padding-inline-start: 1.8rem; overflow-wrap: anywhere }}
.small, details {{ font-size: 0.9rem }}
.note {{ border-inline-start: 4px solid {BLUE}; padding-inline-start: 0.6rem; margin: 0.5rem 0 }}
.card table {{ display: block; overflow-x: auto; border: 0; margin-inline: 0; word-break: normal }}
.card :is(td, th) {{ border-color: var(--border-color-primary); padding: 0.35rem 0.4rem; overflow-wrap: normal }}
.card code {{ white-space: normal; overflow-wrap: anywhere }}
.card p:has(img) {{ overflow-x: auto }}
.card img {{ width: 100%; min-width: 34rem; max-width: none; background: white; border-radius: 4px }}
@media (max-width: 40rem) {{ .matrix th bdi {{ display: none }} }}
"""

MODELS, NO_SECOND_MODEL = load_models()
EXAMPLES: list[list[str]] = SPACE["examples"]


with gr.Blocks(title=SPACE["title"], analytics_enabled=False) as demo:
    gr.Markdown(SPACE["about"])
    with gr.Tab("Compare"):
        text = gr.Textbox(
            "\n".join(EXAMPLES[0]), label="Sentences, one per line (Shift+Enter to compare)", lines=4, max_lines=12
        )
        button = gr.Button("Compare", variant="primary")
        compared = gr.HTML()
    with gr.Tab("Search"):
        pasted = gr.Textbox(
            "\n".join(sum(EXAMPLES, [])),
            label=f"Sentences to search, one per line, up to {SEARCHED:,}",
            lines=4,
            max_lines=8,
        )
        file = gr.File(label="Or a text file of sentences", height=150)
        query = gr.Textbox(label="Query")
        find = gr.Button("Search", variant="primary")
        found = gr.HTML(min_height=100)
    with gr.Tab("The model"):
        gr.Markdown(card(MODELS[0]), elem_classes="card", latex_delimiters=[])
    # One request at a time: all users share the models and their cached embeddings.
    gr.on([demo.load, button.click, text.submit], compare, text, compared, concurrency_id="models")
    gr.on([query.submit, find.click], search, [query, pasted, file], found, concurrency_id="models")


if __name__ == "__main__":
    demo.launch(theme=THEME, css=STYLE, max_file_size="20mb", ssr_mode=False, footer_links=[])
