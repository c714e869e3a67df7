#!/usr/bin/env python3
"""Draws what `meo_bench` measured: times over the number of selected experts, and a roofline.

    meo_bench --benchmark_out=times.json
    plot_times.py times.json times.svg roofline.svg

The first picture has the times of one case relative to the fastest dense product of one expert, as ratios.py has them.
The second has floating-point operations a second over operations for each byte of the experts that are needed, under
the roof of what the same run measured as the most operations and the fastest reading. Extensions decide the formats
(svg, png, pdf). Needs Python 3 and matplotlib (Debian: python3-matplotlib).
"""

import argparse
import json
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import NullLocator, StrMethodFormatter

from ratios import clock_of, read_times

CASE = "b8_t128"
# Okabe and Ito's palette, safe for colour-blind readers; markers tell the methods apart without any colour.
STYLES = {
    "meo": ("#0072B2", "o", "MEO"),
    "moe": ("#D55E00", "s", "MoE"),
    "naive": ("#009E73", "^", "merged in memory, then multiplied (Eigen)"),
    "dense": ("0.3", "x", "dense products"),
}


def new_axes():
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(NullLocator())
    return figure, axes


def draw_times(times):
    figure, axes = new_axes()
    fastest = min(seconds for (method, _), seconds in times.items() if method == "dense")
    for method in ("moe", "naive", "meo"):
        colour, marker, label = STYLES[method]
        points = sorted((variant, seconds / fastest) for (name, variant), seconds in times.items() if name == method)
        if points:
            axes.plot(*zip(*points), color=colour, marker=marker, linewidth=1.8, label=label)
    axes.axhline(1, color=STYLES["dense"][0], linewidth=1, linestyle="--", label="dense, one expert")
    axes.set_xlabel("number of selected experts K")
    axes.set_ylabel("time over the dense product's")
    axes.legend(frameon=False, loc="upper left")
    return figure


def rates(runs):
    """Maps (case, method, variant) to medians of GFLOP/s and of the experts' GB/s, each None where it has none."""
    found = {}
    for run in runs:
        if run["run_type"] == "iteration":
            found.setdefault(tuple(run["run_name"].split("/")), []).append(run)
    return {key: [median(run[rate] for run in some) if some[0].get(rate) else None for rate in ("GFLOP/s", "experts_GB/s")]
            for key, some in found.items()}


def draw_roofline(rate_of):
    figure, axes = new_axes()
    peak = max(flops for (case, _, _), (flops, _) in rate_of.items() if case == "peak")
    bandwidth = max(read for (_, method, _), (_, read) in rate_of.items() if method == "read")
    limits = (0.25, 1024)
    axes.plot([limits[0], peak / bandwidth, limits[1]], [limits[0] * bandwidth, peak, peak], color="0.3", linewidth=1.2,
              label=f"most operations, {peak:.0f} GFLOP/s; fastest reading, {bandwidth:.0f} GB/s")
    for method, (colour, marker, label) in STYLES.items():
        points = [(flops / read, flops) for (case, name, _), (flops, read) in rate_of.items()
                  if name == method and flops and read and not case.startswith(("double", "backward"))]
        if points:
            axes.plot(*zip(*points), linestyle="none", color=colour, marker=marker, markersize=6, markerfacecolor="none",
                      label=label)
    # Some of the cloud by name: from reading experts for one token to operations alone.
    meo = {case: (flops / read, flops) for (case, name, variant), (flops, read) in rate_of.items()
           if name == "meo" and variant == "k8" and flops and read}
    for case in ("b1_t1", "b1_t128", "b32_t128"):
        if case in meo:
            axes.annotate(f"{case}, K = 8", meo[case], textcoords="offset points", xytext=(6, -14), fontsize=9)
    axes.set_xlim(*limits)
    axes.set_xlabel("operations for each byte of the experts")
    axes.set_ylabel("GFLOP/s, float")
    axes.legend(frameon=False, loc="lower right")
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("times", type=Path, help="what meo_bench --benchmark_out=… wrote")
    parser.add_argument("over_k", type=Path, help="the file to write: .svg, .png or .pdf")
    parser.add_argument("roofline", type=Path, help="the file to write: .svg, .png or .pdf")
    arguments = parser.parse_args()

    report = json.loads(arguments.times.read_text(encoding="utf-8"))
    # The same report gives the same bytes: no random ids, no date. Text stays text, which keeps files small.
    pyplot.rcParams.update({"svg.hashsalt": "meo", "svg.fonttype": "none", "font.size": 12})
    pictures = {arguments.over_k: draw_times(read_times(report["benchmarks"], clock_of(report["context"]))[CASE]),
                arguments.roofline: draw_roofline(rates(report["benchmarks"]))}
    for path, figure in pictures.items():
        figure.savefig(path, dpi=100, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
