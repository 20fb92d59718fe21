"""
The tables and figures of the study's three pages in docs/, from the lines of study.jsonl.

    python -m study.report [--check]

Everything between `<!-- NAME -->` and `<!-- /NAME -->` in a page is written here; --check says whether it is what the
lines give, and changes nothing. Intervals are Student's 95% intervals of paired differences: of runs with the same
seed, which means the same order of the sentences and the same first weights.
"""

import argparse
import itertools
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.common import PROJECT
from sarcse.figures import COLORS, LINE_STYLES, MARKERS, STYLE, save, similarity_densities
from study.configurations import FINAL, SERIES, UNTRAINED_MEAN, Series
from study.older_configurations import BATCH_SIZES, CHOICES, ENCODER, METHODS, SETTLED, with_batch_size
from study.reading import (
    STARTS,
    added,
    average,
    cosines,
    dev,
    difference,
    last,
    runs,
    runs_of_series,
    start_of,
    untrained_line,
    with_densities,
)
from study.run import LINES, read_lines
from study.tables import TABLES


DOCS = PROJECT / "docs"
PAGES = [PROJECT / "README.md", *(DOCS / name for name in ("results.md", "tables.md", "choices.md"))]


# --- Figures ---------------------------------------------------------------------------------------------------------


@matplotlib.rc_context(STYLE)
def draw_choices(lines: list[dict[str, Any]], path: Path) -> None:
    """SARCSE's choices as points with their intervals, the best on top, a panel for each of their starting points."""
    found = {}
    for name, start in STARTS.items():
        if start.get("reconstruction_weight") == 0:
            continue  # a baseline
        choices = [choice for choice in CHOICES if start_of(choice) == name]
        values = [
            (added(choice, start), difference(runs(lines, choice), runs(lines, start), dev)) for choice in choices
        ]
        rows = sorted((row for row in values if row[1] is not None), key=lambda row: row[1][0])
        if rows:
            found[name] = rows
    heights = [len(rows) + 1 for rows in found.values()]
    figure = Figure(figsize=(8.5, 1.2 + 0.22 * sum(heights)))
    panels = figure.subplots(len(found), 1, sharex=True, height_ratios=heights)
    for panel, (name, rows) in zip(panels, found.items()):
        for row, (_, (mean, low, high)) in enumerate(rows):
            fill = "full" if low > 0 or high < 0 else "none"
            panel.errorbar(mean, row, xerr=[[mean - low], [high - mean]], fmt="o", color=COLORS[0], fillstyle=fill)
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_yticks(range(len(rows)), [change for change, _ in rows])
        panel.set_title(f"from {name}")
        panel.set_ylim(-0.6, len(rows) - 0.4)
    panels[-1].set_xlabel("difference on STS-B dev, 95% interval")
    save(figure, path)


@matplotlib.rc_context(STYLE)
def draw_batch_sizes(lines: list[dict[str, Any]], path: Path) -> None:
    """Average over batch size, with standard deviations over seeds."""
    if sum(len(runs(lines, with_batch_size(SETTLED, size))) > 0 for size in BATCH_SIZES) < 2:
        return
    figure = Figure(figsize=(5, 2.8))
    panel = figure.subplots()
    for index, (name, choice) in enumerate(METHODS.items()):
        found = {size: runs(lines, with_batch_size(choice, size)).values() for size in BATCH_SIZES}
        points = {size: [average(line) for line in of] for size, of in found.items() if len(of) > 1}
        panel.errorbar(
            list(points),
            [np.mean(values) for values in points.values()],
            [np.std(values, ddof=1) for values in points.values()],
            marker=MARKERS[index],
            linestyle=LINE_STYLES[index],
            color=COLORS[index],
            capsize=3,
            label=name,
        )
    panel.set(xscale="log", xlabel="batch size", ylabel="average Spearman x 100")
    panel.set_xticks(BATCH_SIZES, [str(size) for size in BATCH_SIZES])
    panel.minorticks_off()
    figure.legend(loc="outside right upper")
    save(figure, path)


def draw_densities(lines: list[dict[str, Any]], path: Path) -> None:
    """Figure 3 of the paper, of all seeds together whose lines have the densities."""
    found = with_densities(lines)
    if not found["SARCSE"]:
        return
    # Of the ratings only the groups are left: a number in the middle stands for each.
    ratings = [
        np.full(sum(group), float(label.split(" to ")[0]) + 0.5)
        for line in found["SARCSE"]
        for label, group in line["densities"].items()
    ]
    similarities = {
        name: np.concatenate([cosines(group) for line in of for group in line["densities"].values()])
        for name, of in found.items()
    }
    spearman = {name: float(np.mean([line["sts"]["STSB"] for line in of])) for name, of in found.items()}
    similarity_densities(similarities, spearman, np.concatenate(ratings), path)


@matplotlib.rc_context(STYLE)
def draw_series(lines: list[dict[str, Any]], path: Path, series: Series) -> None:
    """STS-B dev at the end, mean and standard deviation over the seeds; a panel for each encoder."""
    found = runs_of_series(lines, series)
    if not found:
        return
    figure = Figure(figsize=(7, 2.8))
    panels = dict(zip(FINAL, figure.subplots(1, len(FINAL))))
    for (encoder, method), by_value in found.items():
        index = series.methods.index(method)
        scores = [[last(line) for line in of.values()] for of in by_value.values()]
        panels[encoder].errorbar(
            list(by_value),
            [np.mean(of) for of in scores],
            [np.std(of) for of in scores],
            marker=MARKERS[index],
            linestyle=LINE_STYLES[index],
            color=COLORS[index],
            capsize=3,
            label=method,
        )
    for encoder, panel in panels.items():
        untrained = untrained_line(lines, encoder)
        if untrained is not None:
            panel.axhline(dev(untrained), color="black", linewidth=0.8, label=UNTRAINED_MEAN)
        panel.set(xscale="log", xlabel=series.what, title=encoder)
        panel.set_xticks(series.values, [f"{value:,}" for value in series.values])
        panel.minorticks_off()
    panels[ENCODER].set_ylabel("STS-B dev at the end")
    drawn = (zip(*panel.get_legend_handles_labels()) for panel in panels.values())
    handles = {label: handle for handle, label in itertools.chain(*drawn)}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3)
    save(figure, path)


FIGURES: dict[str, Callable[[list[dict[str, Any]], Path], None]] = {
    **{name: partial(draw_series, series=series) for name, series in SERIES.items()},
    "choices": draw_choices,
    "batch_sizes": draw_batch_sizes,
    "densities": draw_densities,
}


# --- The pages -------------------------------------------------------------------------------------------------------


def with_tables(page: str, lines: list[dict[str, Any]]) -> str:
    """A page with its tables made anew."""
    for name, table in TABLES.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if place.search(page):
            text = f"\n{table(lines)}\n\n"
            page = place.sub(lambda match, text=text: match[1] + text + match[2], page)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="Exit with 1 if a page is not what the lines give.")
    arguments = parser.parse_args()
    lines = read_lines()
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        made = with_tables(page, lines)
        if arguments.check and made != page:
            sys.exit(f"{path} is not what {LINES.name} gives: run `python -m study.report`.")
        path.write_text(made, encoding="utf-8")
    if not arguments.check:
        for name, draw in FIGURES.items():
            draw(lines, DOCS / name)


if __name__ == "__main__":
    main()
