#!/usr/bin/env python3
"""Draws the paper's figure, GFLOPs against the number of selected experts, from the table that `meo_flops` writes.

    meo_flops --csv flops.csv
    plot_flops.py flops.csv flops.svg

The output's extension decides the format (svg, png, pdf). Lines are computed by meo/flops.hpp in the paper's
convention, hollow markers are the paper's own values where the table has them. Needs Python 3 and matplotlib (Debian:
python3-matplotlib).
"""

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

# Okabe and Ito's palette, safe for colour-blind readers; dashes tell the methods apart without any colour.
COLOURS = {"MoE": "#D55E00", "MEO": "#0072B2"}
DASHES = {"MoE": (4, 2), "MEO": ()}
MARKERS = ("o", "s", "^")


def read_curves(path):
    """Maps (model, method) to points (top_k, GFLOPs, the paper's GFLOPs or None) by ascending top_k."""
    curves = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            paper = float(row["paper_gflops"]) if row["paper_gflops"] else None
            point = (int(row["top_k"]), float(row["gflops_paper_convention"]), paper)
            curves.setdefault((row["model"], row["method"]), []).append(point)
    return {key: sorted(points, key=lambda point: point[0]) for key, points in curves.items()}


def draw(curves):
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    models = list(dict.fromkeys(model for model, _ in curves))
    marker_of = {model: MARKERS[i % len(MARKERS)] for i, model in enumerate(models)}

    for (model, method), points in curves.items():
        top_k, gflops, paper = zip(*points)
        axes.plot(top_k, gflops, color=COLOURS[method], dashes=DASHES[method], linewidth=1.8, marker=".")
        measured = [(k, value) for k, value in zip(top_k, paper) if value is not None]
        if measured:
            axes.plot(*zip(*measured), linestyle="none", marker=marker_of[model], markersize=7,
                      markerfacecolor="white", markeredgecolor=COLOURS[method], markeredgewidth=1.6)
        axes.annotate(f"{model} {method}", (top_k[-1], gflops[-1]), xytext=(9, 0), textcoords="offset points",
                      color=COLOURS[method], va="center")

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted({point[0] for points in curves.values() for point in points}))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("number of selected experts K")
    axes.set_ylabel("GFLOPs of one sequence")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(handles=legend_handles(curves), frameon=False, loc="upper left")
    return figure


def legend_handles(curves):
    handles = [Line2D([], [], color=COLOURS[method], dashes=DASHES[method], linewidth=1.8, label=f"{method}, computed")
               for method in COLOURS if any(method == other for _, other in curves)]
    if any(paper is not None for points in curves.values() for _, _, paper in points):
        handles.append(Line2D([], [], linestyle="none", marker="o", markersize=7, markerfacecolor="white",
                              markeredgecolor="0.3", markeredgewidth=1.6, label="read off the paper's figure"))
    return handles


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="what meo_flops --csv wrote")
    parser.add_argument("picture", type=Path, help="the file to write: .svg, .png or .pdf")
    arguments = parser.parse_args()

    # The same table gives the same bytes: no random ids, no date.
    pyplot.rcParams.update({"svg.hashsalt": "meo", "font.size": 12})
    metadata = {"Date": None} if arguments.picture.suffix == ".svg" else None
    draw(read_curves(arguments.table)).savefig(arguments.picture, dpi=100, metadata=metadata)


if __name__ == "__main__":
    main()
