#!/usr/bin/env python3
"""Turns what `meo_bench` measured into a table (markdown): each layer's time over that of the fastest dense product.

    meo_bench --benchmark_out=times.json
    ratios.py times.json

    meo_bench --threads=2 --benchmark_out=times2.json
    ratios.py times.json times2.json

Times are medians over the repetitions of one run. "over" names what a time is divided by: the fastest dense product of
one expert on the same tokens, K times that for MoE, or, for one token, reading the experts' bytes. "naive" is the same
ratio for experts merged in memory and then multiplied with, both by Eigen; "gate" is the share of the layer's time that
passes before its experts, in the gate and in token attention; "of peak" the layer's operations a second, which
flops.hpp counts, over those of registers alone that the same run measured, if it did.

The storage_ cases have a table of their own: experts in fewer bits over floats. So have the routed_ cases: a block over
the fastest dense products of the rows that its experts are given, or for one token over reading its experts. So have
the kept cases: a step with an
expert that was merged once over one of a dense layer, and merging it over reading the bytes of K experts and writing
those of one. So have the orders_ cases: MEO in either order, experts merged first or their outputs combined, and in the
one that it chooses itself; and one of from how many tokens on merging first was the faster, beside what the cost model
in mixing/merge_order.hpp says. A second file of more threads adds a table of how much faster they were, by the clock.
Needs Python 3.
"""

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import median

SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}

# (case, method, K): target and stretch
TARGETS = {
    ("b8_t128", "meo", 1): (1.03, 0.98),
    ("b8_t128", "meo", 4): (1.06, 1.00),
    ("b8_t128", "meo", 8): (1.10, 1.03),
    ("b8_t128_3072_768", "meo", 8): (1.12, 1.05),
    ("b32_t128", "meo", 8): (1.12, 1.03),
    ("b1_t128", "meo", 4): (1.05, 1.00),
    ("b1_t128", "meo", 8): (1.16, 1.08),
    ("b1_t512", "meo", 8): (1.05, 1.00),
    ("b8_t32", "meo", 8): (1.33, 1.20),
    ("b8_t128_n32", "meo", 32): (1.30, 1.20),
    ("b1_t1", "meo", 8): (1.10, 1.03),
    ("task_b8_t128", "meo", 8): (1.04, 1.00),
    ("token_b8_t128", "meo", 8): (1.15, 1.08),
    ("token_b8_t128", "moe", 1): (1.08, 1.00),
    ("token_b8_t128", "moe", 8): (1.05, 1.00),
    ("block_b8_t128", "meo", 8): (1.12, 1.05),
    ("double_b8_t128", "meo", 8): (1.12, 1.05),
    ("backward_b8_t128", "meo", 4): (1.20, None),
    ("backward_b8_t128", "meo", 8): (1.35, None),
}

# case: targets of bfloat16 and int8
STORAGE_TARGETS = {
    "storage_b8_t128": (1.00, 1.03),
    "storage_b1_t128": (0.97, None),
    "storage_b1_t1": (0.55, 0.32),
    "storage_moe_t1": (0.55, 0.32),
    "storage_moe_t16": (0.60, 0.40),
    "storage_moe_t1024": (1.03, 1.03),
}

ROUTED_TARGET = 1.10

KEPT_TARGETS = {"step": 1.03, "merge": 1.10}


def clock_of(context):
    """One thread's own time does not count what other programs took from it; with more only the clock is fair."""
    return "cpu_time" if context["threads"] == "1" else "real_time"


def read_times(runs, clock):
    """Maps case to {(method, variant): seconds}; the variant is a library's name or the number of experts, K."""
    repetitions = defaultdict(list)
    for run in runs:
        if run["run_type"] == "iteration":
            repetitions[run["run_name"]].append(run[clock] * SECONDS[run["time_unit"]])
    times = defaultdict(dict)
    for name, seconds in repetitions.items():
        case, method, variant = name.split("/")
        top_k = re.fullmatch(r"k(\d+)", variant)
        times[case][method, int(top_k[1]) if top_k else variant] = median(seconds)
    return times


def read_rates(runs):
    """Maps case to {(method, variant): operations a second}; the median over repetitions."""
    repetitions = defaultdict(list)
    for run in runs:
        if run["run_type"] == "iteration" and "GFLOP/s" in run:
            repetitions[run["run_name"]].append(run["GFLOP/s"] * 1e9)
    rates = defaultdict(dict)
    for name, values in repetitions.items():
        case, method, variant = name.split("/")
        rates[case][method, variant] = median(values)
    return rates


def share_of_peak(rates, case, method, top_k, threads):
    """"" if the run did not measure both. A double case says so in its name."""
    rate = rates[case].get((method, f"k{top_k}"))
    peak = rates["peak"].get(("multiply_add", "double" if case.startswith("double_") else "float"))
    return f"{rate / (peak * threads) * 100:.0f} %" if rate and peak else ""


def rows_of(case, times, rates, threads):
    """A row of cells for each layer of a case that has something to be compared with."""
    dense = [(seconds, library) for (method, library), seconds in times.items() if method == "dense"]
    for (method, top_k), seconds in times.items():
        if method not in ("meo", "moe") or ("merge_first", top_k) in times:
            continue
        products = top_k if method == "moe" else 1
        if ("read", top_k) in times:
            over, baseline = "read", times["read", top_k]
        elif dense:
            fastest, library = min(dense)
            over, baseline = f"{products} × {library}" if products > 1 else library, products * fastest
        else:
            continue
        naive = times.get(("naive", top_k)) if method == "meo" else None
        gate = times.get((method + "_gate", top_k))
        target, stretch = TARGETS.get((case, method, top_k), (None, None))
        ratios = [seconds / baseline, target, stretch, naive and naive / baseline]
        yield [case, method, str(top_k), f"{seconds * 1e3:.3f}", over, f"{baseline * 1e3:.3f}",
               *("" if ratio is None else f"{ratio:.2f}" if i in (1, 2) else f"{ratio:.3f}"
                 for i, ratio in enumerate(ratios)),
               f"{gate / seconds * 100:.1f} %" if gate else "",
               share_of_peak(rates, case, method, top_k, threads)]


def routed_rows_of(case, times):
    """A row of cells for the block of a routed_ case."""
    gathered = [(seconds, library) for (method, library), seconds in times.items() if method == "gathered"]
    for (method, top_k), seconds in times.items():
        if method == "block" and gathered:
            baseline, over = min(gathered)
            if ("read", top_k) in times:
                baseline, over = times["read", top_k], "read"
            yield [case, str(top_k), f"{seconds * 1e3:.3f}", over, f"{baseline * 1e3:.3f}",
                   f"{seconds / baseline:.3f}", f"{ROUTED_TARGET:.2f}"]


def kept_rows_of(case, times):
    """A row of cells for a step with an expert that is kept, and for merging each."""
    over = {"step": ("linear", 1), "merge": ("read_write", None)}
    for (method, top_k), seconds in times.items():
        if method in over:
            name, k = over[method]
            baseline, target = times[name, k or top_k], KEPT_TARGETS[method]
            yield [case, method, str(top_k), f"{seconds * 1e3:.3f}", name, f"{baseline * 1e3:.3f}",
                   f"{seconds / baseline:.3f}", f"{target:.2f}"]


def storage_rows_of(case, times):
    """A row of cells for each K of a storage_ case: a layer's time with experts in fewer bits over that with floats."""
    targets = STORAGE_TARGETS.get(case, (None, None))
    for (method, top_k), seconds in times.items():
        small = [times.get((f"{method}_{storage}", top_k)) for storage in ("bfloat16", "half", "int8")]
        if None not in small:
            yield [case, method, str(top_k), f"{seconds * 1e3:.3f}",
                   *(f"{of_small / seconds:.3f}" for of_small in small),
                   *("" if target is None else f"{target:.2f}" for target in targets)]


def order_rows_of(case, times):
    """A row of cells for each K of a case that has MEO in both orders."""
    for (method, top_k), automatic in times.items():
        if method != "meo" or ("merge_first", top_k) not in times:
            continue
        merge, combine = times["merge_first", top_k], times["combine_outputs", top_k]
        yield [case, str(top_k), *(f"{seconds * 1e3:.3f}" for seconds in (merge, combine, automatic)),
               f"{combine / merge:.2f}", f"{automatic / min(merge, combine):.2f}"]


def crossover_rows(cases, instructions):
    """A row of cells for each number of sequences and K: the fewest tokens measured from which on merging first is the
    faster, and those that the cost model says, 4 p / (K - 1) for packets of 16 p bytes."""
    packet = 64 if "AVX512" in instructions else 32 if "AVX" in instructions else 16
    faster = defaultdict(dict)
    for case, times in cases:
        if size := re.fullmatch(r"orders_b(\d+)_t(\d+)", case):
            for (method, top_k), merge in times.items():
                if method == "merge_first":
                    faster[int(size[1]), top_k][int(size[2])] = merge < times["combine_outputs", top_k]
    for (sequences, top_k), by_tokens in sorted(faster.items()):
        slower = [tokens for tokens, is_faster in by_tokens.items() if not is_faster]
        after = [tokens for tokens in by_tokens if tokens > max(slower, default=0)]
        yield [str(sequences), str(top_k), str(min(after)) if after else "none",
               str(-(-(packet // 4) // (top_k - 1)))]


def speedup_rows(cases, more_cases):
    """A row of cells for each of this library's times that stands in both files."""
    of_more = dict(more_cases)
    for case, times in cases:
        for key, seconds in times.items():
            if key[0] in ("meo", "moe") and key in of_more.get(case, {}):
                yield [case, key[0], str(key[1]), f"{seconds * 1e3:.3f}", f"{of_more[case][key] * 1e3:.3f}",
                       f"{seconds / of_more[case][key]:.2f}"]


def print_table(heading, rules, rows):
    for row in (heading, rules, *rows):
        print("| " + " | ".join(row) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("times", type=Path, help="what meo_bench --benchmark_out=… wrote")
    parser.add_argument("more", type=Path, nargs="?", help="the same by more threads")
    arguments = parser.parse_args()

    report = json.loads(arguments.times.read_text(encoding="utf-8"))
    context = report["context"]
    clock = clock_of(context)
    print(f"{context.get('machine', 'unknown machine')}; {context['threads']} thread(s), {clock.replace('_', ' ')}, "
          f"{context['compiler']}, {context['instructions']}; dense products: {context['dense_products']}; "
          f"{context['date']}\n")
    cases = read_times(report["benchmarks"], clock).items()
    rates, threads = read_rates(report["benchmarks"]), int(context["threads"])
    print_table(["case", "method", "K", "ms", "over", "ms", "ratio", "target", "stretch", "naive", "gate", "of peak"],
                ["---", "---", "--:", "--:", "---", "--:", "--:", "--:", "--:", "--:", "--:", "--:"],
                [row for case, times in cases for row in rows_of(case, times, rates, threads)])
    routed = [row for case, times in cases for row in routed_rows_of(case, times)]
    if routed:
        print()
        print_table(["case", "K", "block, ms", "over", "ms", "ratio", "target"],
                    ["---", "--:", "--:", "---", "--:", "--:", "--:"], routed)
    kept = [row for case, times in cases for row in kept_rows_of(case, times)]
    if kept:
        print()
        print_table(["case", "method", "K", "ms", "over", "ms", "ratio", "target"],
                    ["---", "---", "--:", "--:", "---", "--:", "--:", "--:"], kept)
    storage = [row for case, times in cases for row in storage_rows_of(case, times)]
    if storage:
        print()
        print_table(["case", "method", "K", "float, ms", "bfloat16", "half", "int8", "target bfloat16", "int8"],
                    ["---", "---", "--:", "--:", "--:", "--:", "--:", "--:", "--:"], storage)
    orders = [row for case, times in cases for row in order_rows_of(case, times)]
    if orders:
        print()
        print_table(["case", "K", "merge first, ms", "combine outputs, ms", "own choice, ms", "combine / merge",
                     "own / better"],
                    ["---", "--:", "--:", "--:", "--:", "--:", "--:"], orders)
        print()
        print_table(["sequences", "K", "tokens from which on merging was the faster", "by the cost model"],
                    ["--:", "--:", "--:", "--:"], crossover_rows(cases, context["instructions"]))
    if arguments.more:
        more = json.loads(arguments.more.read_text(encoding="utf-8"))
        print()
        print_table(["case", "method", "K", f"{context['threads']} thread, ms", f"{more['context']['threads']} threads, ms",
                     "times as fast"], ["---", "---", "--:", "--:", "--:", "--:"],
                    speedup_rows(*(read_times(r["benchmarks"], "real_time").items() for r in (report, more))))


if __name__ == "__main__":
    main()
