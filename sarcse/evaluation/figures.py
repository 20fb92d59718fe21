"""
The figures, in one style: PNG and SVG, readable in print, in grey, and by colour-blind readers. Nothing depends on
colour alone: groups have their own rows, models their own markers and line styles, and shades differ in lightness.
"""

import html
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy import stats

from sarcse.options import LABELLED


# The figures of scores: file name -> caption in a model card.
FIGURES = {
    "similarity_densities": "Density of the cosine similarity by gold rating",
    "alignment_uniformity": "Alignment and uniformity",
    "training_curve": "Losses and scores during training",
    "job_scores": "Scores with 95% intervals",
    "text_map": "Texts of up to six labels in a plane that keeps the neighbours of their embeddings together (t-SNE)",
}

# Okabe and Ito's palette (jfly.uni-koeln.de/color) without its yellow, which is too light for lines.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINE_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "svg.hashsalt": "sarcse",  # the same figure is the same file
    "text.parse_math": False,  # a dollar sign in a name is not mathematics
}
ORDERED_SHADES = matplotlib.colormaps["viridis"]  # five steps of it also differ in grey
IMPORTANCE_SHADES = matplotlib.colormaps["Blues"]


def save(figure: Figure, path: Path) -> None:
    """Write the figure to `path` with the endings .png and .svg."""
    figure.savefig(path.with_suffix(".png"))
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def gold_groups(scores: np.ndarray) -> dict[str, np.ndarray]:
    """Five groups of gold ratings, equally wide, the highest first: label -> mask `(P,)`. STS ratings are 0 to 5."""
    low, high = (0, 5) if scores.min() >= 0 and 1 < scores.max() <= 5 else (scores.min(), scores.max())
    edges = np.linspace(low, high, 6)
    group = np.digitize(scores, edges[1:-1])  # (P,) from 0 to 4; a rating on an edge belongs to the group above
    return {f"{edges[i]:.3g} to {edges[i + 1]:.3g}": group == i for i in reversed(range(5))}


@matplotlib.rc_context(STYLE)
def similarity_densities(
    similarities: dict[str, np.ndarray], spearman: dict[str, float | None], scores: np.ndarray, path: Path
) -> None:
    """
    Draw figure 3 of the paper: the density of cosine similarity in each of five groups of gold rating, with one panel
    per model. In a good model the groups are separate and in order. A tick marks each group's median.

    Args:
        similarities (`dict[str, np.ndarray]`): Model -> `(P,)`.
        spearman (`dict[str, float]`): Model -> correlation x 100, for the title.
        scores (`np.ndarray` of shape `(P,)`): Gold ratings.
        path (`Path`): Where to write, without ending.
    """
    groups = gold_groups(scores)
    columns = 2 if len(similarities) == 4 else min(len(similarities), 3)
    rows = -(-len(similarities) // columns)
    figure = Figure(figsize=(1.3 + 2.2 * columns, 0.5 + 2.7 * rows))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    everything = np.concatenate(list(similarities.values()))
    grid = np.linspace(min(everything.min(), 0), max(everything.max(), 1), 400)
    for (name, values), panel in zip(similarities.items(), panels):  # models first, so that spare panels remain
        densities = {label: _density(values[mask], grid) for label, mask in groups.items()}
        height = max(density.max() for density in densities.values()) or 1
        for index, (label, mask) in enumerate(groups.items()):
            base, color = -index, ORDERED_SHADES(0.1 + 0.2 * (len(groups) - 1 - index))
            curve = base + 1.5 * densities[label] / height  # ridges overlap a little
            panel.fill_between(grid, base, curve, color=color, alpha=0.75, linewidth=0, zorder=2 + index)
            outline = np.where(densities[label] > 0.01 * height, curve, np.nan)
            panel.plot(grid, outline, color="white", linewidth=0.8, zorder=2 + index)
            if mask.any():
                panel.vlines(np.median(values[mask]), base, base + 0.25, color="black", linewidth=1.2, zorder=9)
        correlation = "" if spearman[name] is None else f"\nSpearman {spearman[name]:.2f}"
        panel.set_title(textwrap.fill(name, 26) + correlation)  # as wide as a panel
        panel.set_yticks([-index for index in range(len(groups))], [f"{g} (n = {m.sum()})" for g, m in groups.items()])
        panel.grid(axis="y", visible=False)
        panel.tick_params(left=False, labelbottom=True)
        panel.spines["left"].set_visible(False)
    for panel in list(panels):
        panel.set_visible(False)
    figure.set_layout_engine("constrained", w_pad=0.1)  # inches, between the panels' tick labels
    figure.supxlabel("cosine similarity", fontsize=9)
    figure.supylabel("gold rating", fontsize=9)
    save(figure, path)


def _density(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Gaussian kernel density at `grid`; zero if there are too few distinct values."""
    if len(values) < 2 or np.ptp(values) < 1e-6:
        return np.zeros_like(grid)
    return stats.gaussian_kde(values)(grid)


@matplotlib.rc_context(STYLE)
def alignment_uniformity(points: dict[str, tuple[float | None, float | None, float | None]], path: Path) -> None:
    """
    Draw the plane of Wang and Isola (arXiv 2005.10242), with one point per model: further down and left is better.

    Args:
        points (`dict[str, tuple]`): Model -> (alignment, uniformity, average Spearman x 100). A model that lacks one
            of the first two gets no point.
        path (`Path`): Where to write, without ending.
    """
    points = {name: point for name, point in points.items() if None not in point[:2]}
    if not points:
        return
    figure = Figure(figsize=(6.6, 3.2))
    panel = figure.subplots()
    for index, (name, (align, uniform, average)) in enumerate(points.items()):
        panel.plot(
            uniform,
            align,
            marker=MARKERS[index % len(MARKERS)],
            color=COLORS[index % len(COLORS)],
            markersize=9,
            linestyle="none",
            label=name if average is None else f"{name}: {average:.2f}",
        )
    panel.margins(0.15)
    panel.set_xlabel("uniformity (further left: more evenly spread)")
    panel.set_ylabel("alignment (lower: similar pairs closer)")
    figure.legend(loc="outside right upper", title="model: average Spearman")
    save(figure, path)


@matplotlib.rc_context(STYLE)
def job_scores(scores: dict[str, dict[str, tuple[float, float, float]]], path: Path) -> None:
    """
    Draw the scores of other jobs than graded pairs, a panel for each and a row for each model. No scores, no figure.

    Args:
        scores (`dict[str, dict[str, tuple]]`): Model -> name of the score -> value and both ends of its interval.
        path (`Path`): Where to write, without ending.
    """
    names = list(next(iter(scores.values())))
    if not names:
        return
    figure = Figure(figsize=(1.6 + 2.2 * len(names), 0.9 + 0.4 * len(scores)))
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False).flat
    rows = [-index for index in range(len(scores))]
    for panel, name in zip(panels, names):
        for index, of_model in enumerate(scores.values()):
            value, low, high = of_model[name]
            panel.barh(-index, value, xerr=[[value - low], [high - value]], color=COLORS[index % len(COLORS)])
            panel.text(high, -index, f" {value:.1f}", va="center")
        panel.set_title(name)
        panel.margins(x=0.15)
        panel.set_yticks(rows, [textwrap.fill(model, 26) for model in scores])
        panel.grid(axis="y", visible=False)
        panel.tick_params(left=False)
    save(figure, path)


@matplotlib.rc_context(STYLE)
def text_map(maps: dict[str, np.ndarray], labels: list[str], path: Path) -> None:
    """
    Draw labelled texts in the plane, with a panel for each model.

    Args:
        maps (`dict[str, np.ndarray]`): Model -> `(N, 2)`.
        labels (`list[str]`): Of the N texts.
        path (`Path`): Where to write, without ending.
    """
    columns = 2 if len(maps) == 4 else min(len(maps), 3)
    rows = -(-len(maps) // columns)
    figure = Figure(figsize=(2.6 * columns, 0.5 + 2.6 * rows))
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    of, size = np.array(labels), 16 if len(labels) < 500 else 4
    for (model, points), panel in zip(maps.items(), panels):
        for index, label in enumerate(dict.fromkeys(sorted(labels))):
            x, y = points[of == label].T
            panel.scatter(x, y, size, COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)], label=label)
        panel.set_title(textwrap.fill(model, 26))
        panel.set_xticks([])
        panel.set_yticks([])
    for panel in panels[len(maps) :]:
        panel.set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len({*labels}), 3))
    save(figure, path)


@matplotlib.rc_context(STYLE)
def training_curve(histories: dict[str, list[dict[str, float]]], path: Path) -> None:
    """
    Draw each loss, the Spearman correlation of the graded pairs and the health over the steps, with one line per
    run. A ring marks the best evaluation. Without any of these in the log, no figure is written.

    Args:
        histories (`dict[str, list[dict[str, float]]]`): Run -> `log_history` of transformers' `TrainerState`. A model
            without a log has an empty list, so that colours are the same as in the other figures.
        path (`Path`): Where to write, without ending.
    """
    logged = {key for history in histories.values() for line in history for key in line}
    titles = {"contrastive_loss": "InfoNCE (log scale)", "reconstruction_loss": "weighted reconstruction"}
    others = {key for key in logged if key.endswith("_loss")} - {*titles, "train_loss"}  # that is of the whole run
    titles |= {key: key.replace("_", " ") for key in sorted(others)}
    titles |= {
        key: ("STS-B dev" if key == "eval_stsb_spearman" else "graded pairs") + ", Spearman x 100"
        for key in sorted(logged)
        if key.startswith("eval_") and key.endswith("_spearman")
    }
    titles[f"eval_{LABELLED}"] = "ten neighbours with the own label, %"
    titles["eval_health"] = "health: what neighbours have in common"
    titles = {key: title for key, title in titles.items() if key in logged}
    if not titles:
        return
    figure = Figure(figsize=(0.4 + 2.6 * len(titles), 2.6))
    panels = figure.subplots(1, len(titles), sharex=True, squeeze=False).flat
    lines = {}
    for panel, (key, title) in zip(panels, titles.items()):
        for index, (name, history) in enumerate(histories.items()):
            points = [(line["step"], line[key]) for line in history if key in line]
            if not points:
                continue
            steps, values = zip(*points)
            color, style = COLORS[index % len(COLORS)], LINE_STYLES[index % len(LINE_STYLES)]
            dots = "." if key.startswith("eval_") else None
            (lines[name],) = panel.plot(steps, values, color=color, linestyle=style, marker=dots)
            if key.startswith("eval_"):
                best = int(np.argmax(values))
                panel.plot(steps[best], values[best], marker="o", markersize=9, fillstyle="none", color=color)
        if key == "contrastive_loss" and any(line.get(key, 0) > 0 for h in histories.values() for line in h):
            panel.set_yscale("log")  # the loss falls by powers of ten within the first steps
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")  # the default needs mathematical text, which is off here
            panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set_title(title)
        panel.set_xlabel("step")
    if len(lines) > 1:
        figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=min(len(lines), 3))
    save(figure, path)


# --- Figure 1: token importance --------------------------------------------------------------------------------------

Token = tuple[str, float]  # its text, and its reconstruction error
ExplainedPair = tuple[list[Token], list[Token], float]  # two sentences and their cosine similarity


def shade(error: float, smallest: float, largest: float) -> tuple[str, str]:
    """Background colour, dark for the smallest error and light for the largest, and a contrasting text colour."""
    importance = (largest - error) / (largest - smallest) if largest > smallest else 0.0
    return to_hex(IMPORTANCE_SHADES(0.04 + 0.86 * importance)), "white" if importance > 0.795 else "black"


def importance_page(explained: dict[str, list[ExplainedPair]]) -> str:
    """
    Figure 1 of the paper as a self-contained HTML page, since a browser finds a font for every script: the tokens of
    sentence pairs, shaded by importance. Shades are scaled within a model.

    Args:
        explained (`dict[str, list[ExplainedPair]]`): Model -> its pairs.
    """
    ramp = "".join(f'<span style="background:{shade(step, 0, 9)[0]}"></span>' for step in reversed(range(10)))
    sections = []
    for name, pairs in explained.items():
        errors = [error for *sentences, _ in pairs for sentence in sentences for _, error in sentence] or [0.0]
        ends = min(errors), max(errors)
        sections.append(f"<h2>{html.escape(name)}</h2>")
        for *sentences, similarity in pairs:
            sections += [_sentence_paragraph(sentence, *ends) for sentence in sentences]
            sections.append(f'<p class="note">cosine similarity {similarity:.3f}</p>')
        sections.append(
            f'<p class="note">least important: error {ends[1]:.3g} <span class="ramp">{ramp}</span> '
            f"most important: error {ends[0]:.3g}</p>"
        )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Token importance</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; background: white }}
body {{ max-width: 50rem; margin: 2rem auto; padding: 0 1rem }}
.sentence {{ font-size: 1.25rem; line-height: 2.1; margin: 0.4rem 0 }}
.sentence span {{ padding: 0.3rem 0.15rem; margin-right: 1px; border-radius: 3px; white-space: pre-wrap }}
.ramp span {{ display: inline-block; width: 1rem; height: 0.8rem }}
.note {{ color: #555; font-size: 0.9rem; margin: 0 0 1.2rem }}
</style>
</head>
<body>
<h1>Token importance</h1>
<p>The darker a token, the smaller its reconstruction error, and the more of it the sentence embedding preserves
(SARCSE, arXiv 2402.15153, figure 1). Point at a token to read its error.</p>
{chr(10).join(sections)}
</body>
</html>
"""


def _sentence_paragraph(sentence: list[Token], smallest: float, largest: float) -> str:
    spans = []
    for text, error in sentence:
        background, color = shade(error, smallest, largest)
        spans.append(
            f'<span style="background:{background};color:{color}" title="error {error:.3f}">{html.escape(text)}</span>'
        )
    return f'<p class="sentence" dir="auto">{"".join(spans)}</p>'
