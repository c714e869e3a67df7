#!/usr/bin/env python3
"""Draws what ways to spread a block over ranks send, from the tables that `meo_traffic` writes.

    meo_traffic --csv > traffic.csv
    mpirun -n 4 meo_traffic --csv | tail -n +2 >> traffic.csv
    plot_traffic.py traffic.csv traffic.svg

The output's extension decides the format (svg, png, pdf). Lines are on paper, hollow markers were counted. Needs Python 3
and matplotlib (Debian: python3-matplotlib).
"""

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

# Okabe and Ito's palette, safe for colour-blind readers; dashes tell the ways apart without any colour. The padded form
# with a capacity factor of 1 lies on the ragged one.
STYLES = {
    "data parallel, MEO": ("#009E73", (1, 1)),
    "tensor parallel, MEO": ("#0072B2", ()),
    "expert parallel, K = 2": ("#D55E00", (4, 2)),
    "expert parallel, K = 8": ("#CC79A7", (6, 2, 1, 2)),
}
PANELS = (("forward_rows", "a forward"), ("training_rows", "a step of training"))


def read_points(path):
    """Maps (way, source) to rows of the table by ascending ranks."""
    points = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            points.setdefault((row["way"], row["source"]), []).append(row)
    return {key: sorted(rows, key=lambda row: int(row["ranks"])) for key, rows in points.items()}


def draw(points):
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained", sharey=True)
    for axes, (column, title) in zip(panels, PANELS):
        for way, (colour, dashes) in STYLES.items():
            def curve(source):
                rows = points.get((way, source), [])
                shown = [(int(row["ranks"]), float(row[column])) for row in rows if float(row[column]) > 0]
                return zip(*shown) if shown else ((), ())

            axes.plot(*curve("paper"), color=colour, dashes=dashes, linewidth=1.8, label=way)
            axes.plot(*curve("counted"), linestyle="none", marker="o", markersize=6, markerfacecolor="white",
                      markeredgecolor=colour, markeredgewidth=1.5)
        axes.set_title(title)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(base=2, subs=(1,), numticks=14))
            axis.set_major_formatter(ScalarFormatter())
            axis.set_minor_locator(NullLocator())
        axes.set_xlabel("ranks")
        axes.grid(True, color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("values sent by all ranks for a token, over D")
    panels[0].plot([], [], linestyle="none", marker="o", markersize=6, markerfacecolor="white", markeredgecolor="0.3",
                   markeredgewidth=1.5, label="counted")
    panels[0].legend(frameon=False, loc="upper left")
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="what meo_traffic --csv wrote")
    parser.add_argument("picture", type=Path, help="the file to write: .svg, .png or .pdf")
    arguments = parser.parse_args()

    # The same table gives the same bytes: no random ids, no date.
    pyplot.rcParams.update({"svg.hashsalt": "meo", "font.size": 12})
    metadata = {"Date": None} if arguments.picture.suffix == ".svg" else None
    draw(read_points(arguments.table)).savefig(arguments.picture, dpi=100, metadata=metadata)


if __name__ == "__main__":
    main()
