#!/usr/bin/env python3
"""Draws what run_tables.py and train_text write.

    plot.py accuracy accuracy.csv accuracy.svg  # validation accuracy over K, mean and spread over seeds
    plot.py curves log.csv... curves.svg        # loss and validation accuracy over steps, a curve for each --log
    plot.py experts experts.csv experts.svg     # share of tokens or windows of every gate's experts, an --experts-log

The picture's extension decides the format (svg, png, pdf). Needs Python 3 and matplotlib (Debian: python3-matplotlib).
"""

import argparse
import csv
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from cycler import cycler
from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

# Okabe and Ito's palette, safe for colour-blind readers; dashes and markers tell the curves apart without any colour.
CURVES = {
    ("moe", "token"): {"label": "MoE, token level", "color": "#D55E00", "dashes": (4, 2), "marker": "s"},
    ("meo", "sequence"): {"label": "MEO, sequence level", "color": "#0072B2", "dashes": (), "marker": "o"},
    ("meo", "token"): {"label": "MEO, token level", "color": "#009E73", "dashes": (1, 1.5), "marker": "^"},
}
STYLES = (cycler(color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442"])
          + cycler(marker=["o", "s", "^", "D", "v", "P", "X", "<"]))
TASKS = {"licences": ("Which licence a window is from", 1 / 13), "domains": ("Hidden domains", 1 / 4)}


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def panels_with(titles, width):
    """A figure with a panel for each title, side by side, each so many inches wide."""
    figure, panels = pyplot.subplots(1, len(titles), figsize=(width * len(titles), 4), squeeze=False)
    for axes, title in zip(panels[0], titles):
        axes.set_title(title, fontsize=12)
        axes.set_prop_cycle(STYLES)
        axes.grid(True, axis="y", color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels[0]


def with_legend(figure, axes, columns):
    """The panels' common legend, below them."""
    handles, labels = axes.get_legend_handles_labels()
    rows = -(-len(labels) // columns)
    figure.legend(handles, labels, frameon=False, ncol=min(columns, len(labels)), loc="lower center")
    figure.tight_layout(rect=(0, 0.02 + 0.06 * rows, 1, 1))
    return figure


def over_steps(axes):
    axes.set_xlabel("step")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def accuracy(path):
    accuracies = {}  # (task, layer, level): {K: accuracies in percent, one a seed}
    for row in read(path):
        curve = accuracies.setdefault((row["task"], row["layer"], row["level"]), {})
        curve.setdefault(int(row["top_k"]), []).append(100 * float(row["validation_accuracy"]))

    figure, panels = panels_with([title for title, _ in TASKS.values()], width=5)
    for axes, (task, (_, chance)) in zip(panels, TASKS.items()):
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
        axes.set_xscale("log", base=2)
        axes.set_xticks((1, 2, 4, 8))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("selected experts K of 8")
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("validation accuracy, %")
    return with_legend(figure, panels[0], columns=5)


def curves(paths):
    """A curve is named after its file."""
    figure, panels = panels_with(("Loss", "Validation accuracy, %"), width=5)
    for axes, field, scale in zip(panels, ("loss", "validation_accuracy"), (1, 100)):
        for path in paths:
            rows = read(path)
            axes.plot([int(row["step"]) for row in rows], [scale * float(row[field]) for row in rows], linewidth=1.8,
                      markersize=4, label=path.stem)
        over_steps(axes)
    panels[1].set_ylim(bottom=0)
    return with_legend(figure, panels[0], columns=4)


def experts(path):
    gates = {}  # gate: {expert: ([step, ...], [share, ...])}
    for row in read(path):
        steps, shares = gates.setdefault(row["gate"], {}).setdefault(int(row["expert"]), ([], []))
        steps.append(int(row["step"]))
        shares.append(100 * float(row["share"]))

    figure, panels = panels_with(gates, width=3.5)
    for axes, of_experts in zip(panels, gates.values()):
        for expert, (steps, shares) in of_experts.items():
            axes.plot(steps, shares, linewidth=1.5, markersize=4, label=f"expert {expert}")
        axes.set_ylim(bottom=0)
        over_steps(axes)
    panels[0].set_ylabel("share of the gate's selections, %")
    return with_legend(figure, panels[0], columns=8)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="accuracy|curves|experts")
    for draw, count, table in ((accuracy, None, "what run_tables.py accuracy wrote"),
                               (curves, "+", "what train_text --log wrote"),
                               (experts, None, "what train_text --experts-log wrote")):
        command = commands.add_parser(draw.__name__)
        command.add_argument("table", nargs=count, type=Path, help=table)
        command.add_argument("picture", type=Path, help="the file to write: .svg, .png or .pdf")
        command.set_defaults(draw=draw)
    arguments = parser.parse_args()

    # The same table gives the same bytes: no random ids, no date. Text stays text, which keeps the file small.
    pyplot.rcParams.update({"svg.hashsalt": "meo", "svg.fonttype": "none", "font.size": 11})
    metadata = {"Date": None} if arguments.picture.suffix == ".svg" else None
    arguments.draw(arguments.table).savefig(arguments.picture, dpi=100, metadata=metadata)


if __name__ == "__main__":
    main()
