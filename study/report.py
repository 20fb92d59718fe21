"""
The tables and figures of the README, docs/results.md and docs/tables.md, from the lines of study.jsonl.

    python -m study.report [--check]

Everything between `<!-- NAME -->` and `<!-- /NAME -->` in a page is written here; --check says whether it is what the
lines give, and changes nothing. Intervals are Student's 95% intervals of paired differences: of runs with the same
seed, which means the same order of the sentences and the same first weights.
"""

import argparse
import itertools
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.common import PROJECT
from sarcse.evaluation.figures import COLORS, LINE_STYLES, MARKERS, STYLE, save
from study.configurations import ENCODER, FINAL, SERIES, UNTRAINED_MEAN, Series
from study.reading import dev, last, runs_of_series, untrained_line
from study.run import LINES, read_lines
from study.tables import TABLES


DOCS = PROJECT / "docs"
PAGES = [PROJECT / "README.md", *(DOCS / name for name in ("results.md", "tables.md", "training.md"))]


# --- Figures ---------------------------------------------------------------------------------------------------------


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
        for name, series in SERIES.items():
            draw_series(lines, DOCS / name, series)
            (DOCS / name).with_suffix(".svg").unlink()  # the pages show the PNG


if __name__ == "__main__":
    main()
