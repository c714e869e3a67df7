#!/usr/bin/env python3
"""Draws what pretrain, glue and experiment/run.py write, and makes the experiment's table.

    plot.py curves log.csv... curves.svg        # loss and scores over steps, a curve for each --log
    plot.py experts experts.csv experts.svg     # share of each class's selections by expert, at an --experts-log's end
    plot.py scores results.csv scores.svg       # score over FLOPs and over seconds, mean and spread over seeds
    plot.py table results.csv                   # the same as Markdown, to standard output

The picture's extension decides the format (svg, png, pdf). Needs Python 3, for pictures matplotlib (Debian:
python3-matplotlib).
"""

import argparse
import csv
import statistics
from pathlib import Path

# Okabe and Ito's palette, safe for colour-blind readers; dashes and markers tell the curves apart without any colour.
CURVES = {
    ("dense", ""): {"label": "dense", "color": "#000000", "linestyle": "", "marker": "*"},
    ("moe", "token"): {"label": "MoE, token level", "color": "#D55E00", "dashes": (4, 2), "marker": "s"},
    ("moe", "sequence"): {"label": "MoE, sequence level", "color": "#E69F00", "dashes": (5, 1, 1, 1), "marker": "D"},
    ("meo", "sequence"): {"label": "MEO, sequence level", "color": "#0072B2", "dashes": (), "marker": "o"},
    ("meo", "token"): {"label": "MEO, token level", "color": "#009E73", "dashes": (1, 1.5), "marker": "^"},
    ("meo", "segment"): {"label": "MEO, segment level", "color": "#56B4E9", "dashes": (), "marker": "v"},
}
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<"]
# The first of these that a row has is its score, and what it is multiplied by.
SCORES = {"macro_f1": ("macro F1, %", 100), "perplexity": ("perplexity", 1), "accuracy": ("accuracy, %", 100)}
NO_SCORES = {"step", "loss", "balance_loss", "learning_rate", "flops_per_token", "tokens_per_second", "seconds"}


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def panels_with(titles, width, rows=1):
    """A figure with a panel for each title, each so many inches wide."""
    from cycler import cycler
    from matplotlib import pyplot
    columns = -(-len(titles) // rows)
    figure, panels = pyplot.subplots(rows, columns, figsize=(width * columns, 3.7 * rows), squeeze=False)
    panels = list(panels.flat)
    for axes, title in zip(panels, titles):
        axes.set_title(title, fontsize=12)
        axes.set_prop_cycle(cycler(color=COLORS) + cycler(marker=MARKERS))
        axes.grid(True, axis="y", color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def with_legend(figure, axes, columns):
    """The panels' common legend, below them."""
    handles, labels = axes.get_legend_handles_labels()
    rows = -(-len(labels) // columns)
    figure.legend(handles, labels, frameon=False, ncol=min(columns, len(labels)), loc="lower center")
    share = 0.3 * rows / figure.get_figheight()
    figure.tight_layout(rect=(0, share + 0.02, 1, 1))
    return figure


def curves(paths):
    """A curve is named after its file."""
    tables = {path.stem: read(path) for path in paths}
    scores = [field for field in next(iter(tables.values()))[0]
              if field not in NO_SCORES and all(field in rows[0] for rows in tables.values())]
    figure, panels = panels_with(["loss", *scores], width=4)
    for axes, field in zip(panels, ["loss", *scores]):
        for name, rows in tables.items():
            axes.plot([int(row["step"]) for row in rows], [float(row[field]) for row in rows], linewidth=1.8,
                      markersize=4, label=name)
        axes.set_xlabel("step")
        axes.set_xlim(left=0)
    return with_legend(figure, panels[0], columns=4)


def experts(path):
    """Rows are classes, columns experts, a panel a gate."""
    rows = read(path)
    rows = [row for row in rows if row["step"] == rows[-1]["step"]]
    gates = list(dict.fromkeys(row["gate"] for row in rows))
    classes = list(dict.fromkeys(row["class"] for row in rows))
    count = 1 + max(int(row["expert"]) for row in rows)
    share = {(row["gate"], row["class"], int(row["expert"])): 100 * float(row["share"]) for row in rows}
    figure, panels = panels_with([gate.split("layer.")[-1] for gate in gates], width=3.2, rows=2)
    for axes, gate in zip(panels, gates):
        table = [[share[gate, of_class, expert] for expert in range(count)] for of_class in classes]
        image = axes.imshow(table, cmap="Blues", vmin=0, aspect="auto")
        axes.grid(False)
        axes.set_xticks(range(count))
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
        axes.set_xlabel("expert")
    figure.tight_layout()
    figure.colorbar(image, ax=panels, label="share of the class's selections, %")
    return figure


def score_of(row):
    field = next(field for field in SCORES if field in row)
    return SCORES[field][1] * float(row[field])


def label_of(row):
    return SCORES[next(field for field in SCORES if field in row)][0]


def by_configuration(rows):
    """{(ffn, level, K): rows of the seeds}, in the order of the file."""
    found = {}
    for row in rows:
        found.setdefault((row["ffn"], row["level"], int(row["top_k"])), []).append(row)
    return found


def mean_and_spread(values):
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def scores(path):
    """Of runs of equal steps, the most that there are; shorter ones are in the table alone."""
    rows = read(path)
    most = max(int(row["steps"]) for row in rows)
    rows = [row for row in rows if int(row["steps"]) == most]
    tasks = list(dict.fromkeys(row.get("task", "Brown") for row in rows))
    figure, panels = panels_with(2 * tasks, width=4, rows=2)
    for i, axes in enumerate(panels):
        of_task = [row for row in rows if row.get("task", "Brown") == tasks[i % len(tasks)]]
        cost, unit, name = (("flops_per_token", 1e6, "MFLOPs a token") if i < len(tasks)
                            else ("seconds", 1, "seconds of training"))
        for (ffn, level), style in CURVES.items():
            points = sorted((key[2], runs) for key, runs in by_configuration(of_task).items()
                            if key[:2] == (ffn, level))
            if not points:
                continue
            means = [mean_and_spread([score_of(row) for row in runs]) for _, runs in points]
            axes.errorbar([statistics.mean(float(row[cost]) / unit for row in runs) for _, runs in points],
                          [mean for mean, _ in means], yerr=[spread for _, spread in means], capsize=3,
                          linewidth=1.6, markersize=6, **style)
        axes.set_xlim(left=0)
        axes.set_xlabel(name)
        axes.set_ylabel(label_of(of_task[0]))
    return with_legend(figure, panels[0], columns=5)


def table(path):
    rows = read(path)
    tasks = list(dict.fromkeys(row.get("task", "Brown") for row in rows))
    dense = {task: statistics.mean(float(row["seconds"]) for row in rows
                                   if row.get("task", "Brown") == task and row["ffn"] == "dense") for task in tasks}
    titles = [f"{task}: {label_of(rows[0])}" for task in tasks]
    print("| blocks | K | steps | " + " | ".join(titles) + " | seeds | MFLOPs a token | time |")
    print("|---|--:|--:|" + "--:|" * (len(tasks) + 3))
    found = {}
    for row in rows:
        found.setdefault((row["ffn"], row["level"], int(row["top_k"]), int(row["steps"])), []).append(row)
    order = list(CURVES)
    by_curve = lambda item: (order.index(item[0][:2]), item[0][2:])
    for (ffn, level, top_k, steps), runs in sorted(found.items(), key=by_curve):
        cells, times = [], []
        for task in tasks:
            of_task = [row for row in runs if row.get("task", "Brown") == task]
            if not of_task:
                cells.append("–")
                continue
            mean, spread = mean_and_spread([score_of(row) for row in of_task])
            cells.append(f"{mean:.1f} ± {spread:.1f}")
            times.append(statistics.mean(float(row["seconds"]) for row in of_task) / dense[task])
        flops = statistics.mean(float(row["flops_per_token"]) for row in runs) / 1e6
        print(f"| {CURVES[ffn, level]['label']} | {top_k or '–'} | {steps} | {' | '.join(cells)} | "
              f"{len({row['seed'] for row in runs})} | {flops:.2f} | {statistics.mean(times):.2f} |")


def draw(make, tables, picture):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    # The same table gives the same bytes: no random ids, no date. Text stays text, which keeps the file small.
    pyplot.rcParams.update({"svg.hashsalt": "meo", "svg.fonttype": "none", "font.size": 11})
    metadata = {"Date": None} if picture.suffix == ".svg" else None
    make(tables).savefig(picture, dpi=100, metadata=metadata)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="curves|experts|scores|table")
    for make, count, written in ((curves, "+", "what --log wrote"), (experts, None, "what --experts-log wrote"),
                                 (scores, None, "what experiment/run.py wrote")):
        command = commands.add_parser(make.__name__)
        command.add_argument("table", nargs=count, type=Path, help=written)
        command.add_argument("picture", type=Path, help="the file to write: .svg, .png or .pdf")
        command.set_defaults(run=lambda arguments, make=make: draw(make, arguments.table, arguments.picture))
    command = commands.add_parser("table")
    command.add_argument("table", type=Path, help="what experiment/run.py wrote")
    command.set_defaults(run=lambda arguments: table(arguments.table))
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
