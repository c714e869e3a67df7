#!/usr/bin/env python3
"""Draws validation accuracy over K, mean and spread over seeds, from the accuracies that `run_tables.py` writes.

    plot.py accuracy.csv accuracy.svg

The output's extension decides the format (svg, png, pdf). Needs Python 3 and matplotlib (Debian: python3-matplotlib).
"""

import argparse
import csv
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import NullLocator, ScalarFormatter

# Okabe and Ito's palette, safe for colour-blind readers; dashes and markers tell the curves apart without any colour.
CURVES = {
    ("moe", "token"): {"label": "MoE, token level", "color": "#D55E00", "dashes": (4, 2), "marker": "s"},
    ("meo", "sequence"): {"label": "MEO, sequence level", "color": "#0072B2", "dashes": (), "marker": "o"},
    ("meo", "token"): {"label": "MEO, token level", "color": "#009E73", "dashes": (1, 1.5), "marker": "^"},
}
TASKS = {"licences": ("Which licence a window is from", 1 / 13), "domains": ("Hidden domains", 1 / 4)}


def read_accuracies(path):
    """Maps (task, layer, level) to {K: accuracies in percent, one a seed}."""
    accuracies = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            curve = accuracies.setdefault((row["task"], row["layer"], row["level"]), {})
            curve.setdefault(int(row["top_k"]), []).append(100 * float(row["validation_accuracy"]))
    return accuracies


def draw(accuracies):
    figure, panels = pyplot.subplots(1, len(TASKS), figsize=(10, 4))
    for axes, (task, (title, chance)) in zip(panels, TASKS.items()):
        dense = accuracies[task, "dense", ""][1]
        mean, spread = statistics.mean(dense), statistics.stdev(dense)
        axes.axhspan(mean - spread, mean + spread, color="0.9", linewidth=0)
        axes.axhline(mean, color="0.35", linewidth=1.5, label="dense")
        axes.axhline(100 * chance, color="0.6", linewidth=1, dashes=(1, 3), label="chance")
        for shift, ((layer, level), style) in zip((0.97, 1, 1.03), CURVES.items()):  # apart, where curves meet
            points = sorted(accuracies[task, layer, level].items())
            axes.errorbar([top_k * shift for top_k, _ in points], [statistics.mean(of) for _, of in points],
                          yerr=[statistics.stdev(of) for _, of in points], capsize=3, linewidth=1.8, markersize=6,
                          **style)
        axes.set_title(title, fontsize=12)
        axes.set_xscale("log", base=2)
        axes.set_xticks((1, 2, 4, 8))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("selected experts K of 8")
        axes.set_ylim(bottom=0)
        axes.grid(True, axis="y", color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("validation accuracy, %")
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, ncol=5, loc="lower center")
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="what run_tables.py accuracy wrote")
    parser.add_argument("picture", type=Path, help="the file to write: .svg, .png or .pdf")
    arguments = parser.parse_args()

    # The same table gives the same bytes: no random ids, no date. Text stays text, which keeps the file small.
    pyplot.rcParams.update({"svg.hashsalt": "meo", "svg.fonttype": "none", "font.size": 11})
    metadata = {"Date": None} if arguments.picture.suffix == ".svg" else None
    draw(read_accuracies(arguments.table)).savefig(arguments.picture, dpi=100, metadata=metadata)


if __name__ == "__main__":
    main()
