import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from sarcse.evaluation import figures


def luminance(color):
    """Relative luminance as defined by WCAG 2: how light a colour is in greyscale."""
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return np.dot(channels, [0.2126, 0.7152, 0.0722])


def svg_text(path):
    """Matplotlib keeps the words that it draws as paths in comments of the SVG."""
    return re.findall(r"<!-- (.*?) -->", path.with_suffix(".svg").read_text(encoding="utf-8"))


@pytest.fixture
def scores():
    return np.random.default_rng(0).uniform(0, 5, 200).round(1)


def test_gold_groups_are_five_and_every_pair_is_in_one(scores):
    groups = figures.gold_groups(scores)
    assert list(groups) == ["4 to 5", "3 to 4", "2 to 3", "1 to 2", "0 to 1"]
    assert (sum(mask.astype(int) for mask in groups.values()) == 1).all()
    assert (scores[groups["4 to 5"]] >= 4).all() and (scores[groups["2 to 3"]] >= 2).all()
    assert (scores[groups["2 to 3"]] < 3).all()


def test_gold_groups_of_another_scale_divide_its_range():
    assert list(figures.gold_groups(np.array([0.0, 0.3, 1.0]))) == [
        "0.8 to 1", "0.6 to 0.8", "0.4 to 0.6", "0.2 to 0.4", "0 to 0.2"
    ]  # fmt: skip


@pytest.mark.parametrize("models", [1, 2, 5])
def test_densities_have_a_panel_for_each_model(tmp_path, scores, models):
    similarities = {f"model {i}": scores / 5 + np.random.default_rng(i).normal(0, 0.1, 200) for i in range(models)}
    spearman = {name: 10.0 * index for index, name in enumerate(similarities)}
    figures.similarity_densities(similarities, spearman, scores, tmp_path / "densities")
    assert (tmp_path / "densities.svg").read_text().count('id="axes_') == models, "spare panels are not drawn"
    words = svg_text(tmp_path / "densities")
    for index, name in enumerate(similarities):
        assert name in words and f"Spearman {10 * index:.2f}" in words
    assert f"4 to 5 (n = {(scores >= 4).sum()})" in words


def test_densities_of_a_model_that_cannot_tell_sentences_apart(tmp_path):
    """A single value or an empty group has no density; the panel is still drawn."""
    values = {"constant": np.ones(3)}
    figures.similarity_densities(values, {"constant": None}, np.array([0.5, 1.0, 4.5]), tmp_path / "densities")
    assert "2 to 3 (n = 0)" in svg_text(tmp_path / "densities")


def test_plane_has_a_point_for_each_model_that_has_both_numbers(tmp_path):
    points = {"one": (0.1, -2.0, 50.0), "two": (0.2, -1.0, None), "none": (None, -1.0, 50.0)}
    figures.alignment_uniformity(points, tmp_path / "plane")
    words = svg_text(tmp_path / "plane")
    assert "one: 50.00" in words and "two" in words and not any("none" in word for word in words)
    figures.alignment_uniformity({"none": points["none"]}, tmp_path / "empty")
    assert not (tmp_path / "empty.png").exists()


def test_training_curve_shows_what_the_runs_logged(tmp_path):
    sarcse = [
        {"step": 10, "contrastive_loss": 1.0, "reconstruction_loss": 0.9, "loss": 1.9},
        {"step": 20, "contrastive_loss": 0.5, "reconstruction_loss": 0.8, "loss": 1.3},
        {"step": 20, "eval_stsb_spearman": 60.0, "eval_uniformity": -2.0},
        {"step": 20, "train_runtime": 3.0},
    ]
    simcse = [{"step": 10, "contrastive_loss": 1.0}, {"step": 10, "eval_stsb_spearman": float("nan")}]
    figures.training_curve({"sarcse": sarcse, "simcse": simcse}, tmp_path / "both")
    assert {"InfoNCE (log scale)", "weighted reconstruction", "STS-B dev, Spearman x 100", "sarcse", "simcse"} <= set(
        svg_text(tmp_path / "both")
    )
    assert "0.5" in svg_text(tmp_path / "both") and not any("$" in word for word in svg_text(tmp_path / "both"))
    figures.training_curve({"simcse": simcse[:1]}, tmp_path / "one")
    assert "weighted reconstruction" not in svg_text(tmp_path / "one")
    figures.training_curve({"other": [{"step": 1, "loss": 2.0}]}, tmp_path / "none")
    assert not (tmp_path / "none.png").exists(), "a log without these losses has no curve"


def test_the_same_figure_is_the_same_file(tmp_path, scores):
    for name in ("first", "second"):
        figures.similarity_densities({"model": scores / 5}, {"model": 1.0}, scores, tmp_path / name)
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    ElementTree.parse(tmp_path / "first.svg")


def test_shades_survive_print_and_colour_blindness():
    """Shades are ordered by lightness, which greyscale keeps. Text has WCAG's contrast of 4.5 to 1."""
    errors = np.linspace(0, 1, 50)
    shades = [figures.shade(error, 0, 1) for error in errors]
    lightness = [luminance(background) for background, _ in shades]
    assert (np.diff(lightness) > 0).all(), "the larger the error, the lighter"
    for (_, text), background in zip(shades, lightness):
        light, dark = sorted((luminance(text), background), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 4.5
    groups = [luminance(figures.ORDERED_SHADES(0.1 + 0.2 * index)) for index in range(5)]
    assert (np.diff(groups) > 0.05).all()


class Page(HTMLParser):
    """The spans of a page's sentences with their attributes, and the URLs that it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.sentences, self.fetched, self.tags, self.words, self._sentence = [], [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.fetched += [value for name, value in attributes.items() if name in ("src", "href")]
        if tag == "p":
            self._sentence = attributes.get("class") == "sentence"
            if self._sentence:
                self.sentences.append([])
        if tag == "span" and self._sentence:
            self.sentences[-1].append([attributes["style"], attributes["title"], ""])

    def handle_data(self, data):
        self.words.append(data)
        if self._sentence and self.sentences[-1] and data.strip("\n"):
            self.sentences[-1][-1][2] += data


PAIR = (
    [("It", 0.5), (" costs", 0.2), (" $", 0.9), ("5", 0.4), (" &", 0.6), (" <b>", 0.3)],
    [("مرحبا", 0.7), (" 🙂", 0.8)],
    0.75,
)


def test_page_shows_each_token_once_and_fetches_nothing():
    page = Page(figures.importance_page({"you/<model>": [PAIR], "other": [PAIR]}))
    assert ["".join(text for *_, text in sentence) for sentence in page.sentences] == [
        "It costs $5 & <b>", "مرحبا 🙂"
    ] * 2  # fmt: skip
    assert page.fetched == [] and "script" not in page.tags and "link" not in page.tags
    styles = [span[0] for span in page.sentences[0]]
    backgrounds = [luminance(re.search("background:(#[0-9a-f]+)", style)[1]) for style in styles]
    assert np.argsort(backgrounds).tolist() == np.argsort([error for _, error in PAIR[0]]).tolist()
    assert [title for _, title, _ in page.sentences[1]] == ["error 0.700", "error 0.800"]
    words = "".join(page.words)
    assert words.count("cosine similarity 0.750") == words.count("least important: error 0.9") == 2
    assert words.count("most important: error 0.2") == 2


def test_a_sentence_without_tokens_has_a_page_too():
    assert Page(figures.importance_page({"model": [([], [], 1.0)]})).sentences == [[], []]
