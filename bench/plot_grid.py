#!/usr/bin/env python3
"""Draws what `meo_bench --grid` measured as heat maps: the layer's time over that of the fastest dense product.

    meo_bench --grid --csv=grid.csv
    plot_grid.py grid.csv grid.svg

Each cell is the geometric mean of the cases of MEO by sequence that fall into it, with their number where there are
more than one; an empty cell is none. Left by sizes of the product and numbers of tokens, right by numbers of experts
and numbers of tokens. Extensions decide the format (svg, png, pdf). Needs Python 3 and matplotlib (Debian:
python3-matplotlib).
"""

import argparse
import csv
import math
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.colors import LogNorm

LAYER = "meo"


def read_cases(path):
    """The rows of MEO's forward, numbers as numbers."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["layer"] == LAYER:
                yield {key: int(row[key]) for key in ("sequences", "tokens", "in", "out", "N", "K")} | {
                    "ratio": float(row["ratio"])}


def means(cases, row_of, column_of):
    """Maps (row, column) to the geometric mean of the ratios and their number."""
    logarithms = defaultdict(list)
    for case in cases:
        logarithms[row_of(case), column_of(case)].append(math.log(case["ratio"]))
    return {cell: (math.exp(sum(values) / len(values)), len(values)) for cell, values in logarithms.items()}


def draw_map(axes, cells, norm, row_label, column_label):
    rows, columns = (sorted({cell[i] for cell in cells}) for i in (0, 1))
    image = [[cells.get((row, column), (math.nan, 0))[0] for column in columns] for row in rows]
    drawn = axes.imshow(image, norm=norm, cmap="cividis", aspect="auto")
    for (row, column), (mean, count) in cells.items():
        dark = norm(mean) < 0.5
        axes.text(columns.index(column), rows.index(row), f"{mean:.2f}" + (f"\n{count}" if count > 1 else ""),
                  ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_xticks(range(len(columns)), [column_label(column) for column in columns], rotation=90)
    axes.set_yticks(range(len(rows)), [row_label(row) for row in rows])
    return drawn


def draw(cases):
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(15, 6.5), layout="constrained")
    norm = LogNorm(1, 4, clip=True)

    def batch(case):
        return case["sequences"], case["tokens"]

    def batch_label(pair):
        return f"{pair[0]} × {pair[1]}"

    draw_map(left, means(cases, lambda case: (case["in"] > case["out"], case["in"], case["out"]), batch), norm,
             lambda sizes: f"{sizes[1]} → {sizes[2]}", batch_label)
    drawn = draw_map(right, means(cases, lambda case: (case["N"], case["K"]), batch), norm,
                     lambda pair: f"{pair[1]} of {pair[0]}", batch_label)
    left.set_ylabel("features")
    right.set_ylabel("selected experts")
    for axes in (left, right):
        axes.set_xlabel("sequences × tokens")
    bar = figure.colorbar(drawn, ax=[left, right], label="time over that of the fastest dense product", extend="both")
    bar.set_ticks([1, 1.2, 1.5, 2, 3, 4], labels=["1", "1.2", "1.5", "2", "3", "4"])
    bar.minorticks_off()
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="what meo_bench --grid --csv=… wrote")
    parser.add_argument("picture", type=Path, help="the file to write: .svg, .png or .pdf")
    arguments = parser.parse_args()

    cases = list(read_cases(arguments.table))
    if not cases:
        parser.error(f"{arguments.table} has no case of the layer '{LAYER}'")
    # The same table gives the same bytes: no random ids, no date.
    pyplot.rcParams.update({"svg.hashsalt": "meo", "font.size": 10})
    metadata = {"Date": None} if arguments.picture.suffix == ".svg" else None
    draw(cases).savefig(arguments.picture, dpi=100, metadata=metadata)


if __name__ == "__main__":
    main()
