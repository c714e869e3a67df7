#!/usr/bin/env python3
"""Draws what `bench_model` measured: times and FLOPs over the dense model's, over the number of selected experts.

    bench_model --csv bert.csv
    plot_model.py bert.csv bert.svg

Of the first batch and one thread. The extension decides the format (svg, png, pdf). Needs Python 3 and matplotlib (Debian:
python3-matplotlib).
"""

import argparse
import csv

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import NullLocator, StrMethodFormatter

# Okabe and Ito's palette, safe for colour-blind readers; markers tell the rows apart without any colour.
STYLES = {
    "moe-token": ("#D55E00", "s", "MoE, token level"),
    "meo-token": ("#009E73", "^", "MEO, token level"),
    "meo-sequence": ("#0072B2", "o", "MEO, sequence level"),
    "meo-segment": ("#0072B2", "o", "MEO, segment level"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv")
    parser.add_argument("picture")
    arguments = parser.parse_args()
    with open(arguments.csv, newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if row["threads"] == "1" and row["texts"] == rows[0]["texts"]]
    dense = {row["top_k"]: row for row in rows if row["row"] == "dense"}
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, (colour, marker, label) in STYLES.items():
        points = sorted((int(row["top_k"]), float(row["seconds"]) / float(dense[row["top_k"]]["seconds"]),
                         float(row["flops"]) / float(dense[row["top_k"]]["flops"]))
                        for row in rows if row["row"] == name)
        if points:
            ks, seconds, flops = zip(*points)
            axes.plot(ks, seconds, color=colour, marker=marker, linewidth=1.8, label=label)
            axes.plot(ks, flops, color=colour, linewidth=1, linestyle=":")
    axes.plot([], [], color="0.3", linewidth=1, linestyle=":", label="FLOPs over the dense model's")
    axes.axhline(1, color="0.3", linewidth=1, linestyle="--", label="dense")
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("number of selected experts K")
    axes.set_ylabel("time over the dense model's")
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(arguments.picture)


if __name__ == "__main__":
    main()
