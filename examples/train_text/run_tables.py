#!/usr/bin/env python3
"""Makes the tables of the README: trains every configuration, measures their speed, prints both as Markdown.

    run_tables.py accuracy train_text accuracy.csv   # 3 seeds, both tasks; goes on from the runs that are there
    run_tables.py accuracy train_text accuracy_6000.csv --steps=6000 --tasks=licences
    run_tables.py speed train_text speed.csv         # short runs in turn; on a quiet machine
    run_tables.py table accuracy.csv speed.csv

`train_text` is the program. The first task needs Debian's /usr/share/common-licenses.
"""

import argparse
import csv
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

EXPERTS = 8
CONFIGURATIONS = [("dense", "", 1)]
CONFIGURATIONS += [("moe", "token", k) for k in (1, 2, 4)]
CONFIGURATIONS += [("meo", level, k) for level in ("sequence", "token") for k in (1, 2, 4, 8)]
NAMES = {("dense", ""): "dense", ("moe", "token"): "MoE, token level", ("meo", "sequence"): "MEO, sequence level",
         ("meo", "token"): "MEO, token level"}
SEEDS = (1, 2, 3)
TASKS = ("licences", "domains")
MODEL = ["--width=32", "--hidden=128", "--window=128", "--batch=16"]
STEPS, SPEED_STEPS, SPEED_ROUNDS = 1000, 60, 3
SHORTEST = 20 * 128  # bytes; train_text needs 20 windows of a file

FIELDS = ["task", "layer", "level", "top_k", "seed", "steps", "loss", "validation_accuracy", "flops_per_token",
          "tokens_per_second"]


def licences():
    files = [path for path in sorted(Path("/usr/share/common-licenses").iterdir()) if not path.is_symlink()]
    return [str(path) for path in files if path.stat().st_size >= SHORTEST]


def train(program, task, configuration, seed, steps):
    """One run; returns its last line of the log."""
    layer, level, top_k = configuration
    options = [f"--layer={layer}", *MODEL, f"--seed={seed}", f"--steps={steps}", f"--report={steps}"]
    if layer != "dense":
        options += [f"--level={level}", f"--experts={EXPERTS}", f"--top-k={top_k}"]
    with tempfile.TemporaryDirectory() as folder:
        log = os.path.join(folder, "log.csv")
        data = ["--domains"] if task == "domains" else licences()
        subprocess.run([program, *options, f"--log={log}", *data], check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, "OMP_NUM_THREADS": "1"})
        with open(log, newline="", encoding="utf-8") as file:
            last = list(csv.DictReader(file))[-1]
    return {"task": task, "layer": layer, "level": level, "top_k": top_k, "seed": seed, "steps": steps,
            **{field: last[field] for field in FIELDS[6:]}}


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run(program, path, jobs):
    """Trains every job and adds a line for each to the file as soon as it is done, unless it is there."""
    done = set()
    if path.exists():
        done = {(row["task"], row["layer"], row["level"], int(row["top_k"]), int(row["seed"])) for row in read(path)}
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if not file.tell():
            writer.writeheader()
        for task, configuration, seed, steps in jobs:
            if (task, *configuration, seed) in done:
                continue
            writer.writerow(train(program, task, configuration, seed, steps))
            file.flush()


def accuracy(program, path, steps, tasks):
    run(program, path, [(task, configuration, seed, steps) for seed in SEEDS for task in tasks
                        for configuration in CONFIGURATIONS])


def speed(program, path):
    path.unlink(missing_ok=True)
    run(program, path, [("domains", configuration, seed, SPEED_STEPS) for seed in range(1, SPEED_ROUNDS + 1)
                        for configuration in CONFIGURATIONS])


def table(accuracy_path, speed_path):
    accuracies, speeds = read(accuracy_path), read(speed_path)
    tasks = [task for task in TASKS if any(row["task"] == task for row in accuracies)]

    def values(rows, field, configuration, task=None):
        layer, level, top_k = configuration
        return [float(row[field]) for row in rows
                if (row["layer"], row["level"], int(row["top_k"])) == (layer, level, top_k)
                and task in (None, row["task"])]

    dense = statistics.median(values(speeds, "tokens_per_second", CONFIGURATIONS[0]))
    print("| blocks | K | " + " | ".join(f"{task}: accuracy, %" for task in tasks)
          + " | FLOPs per token | time |\n" + "|---" * (4 + len(tasks)) + "|")
    for configuration in CONFIGURATIONS:
        layer, level, top_k = configuration
        cells = []
        for task in tasks:
            found = [100 * value for value in values(accuracies, "validation_accuracy", configuration, task)]
            cells.append(f"{statistics.mean(found):.1f} ± {statistics.stdev(found):.1f}")
        flops = values(accuracies, "flops_per_token", configuration)[0]
        time = dense / statistics.median(values(speeds, "tokens_per_second", configuration))
        print(f"| {NAMES[layer, level]} | {'–' if layer == 'dense' else top_k} | {' | '.join(cells)} | {flops:.0f} | {time:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("accuracy", "speed", "table"))
    parser.add_argument("first", help="the program, or for a table the accuracies")
    parser.add_argument("second", type=Path, help="the file to write, or for a table the speeds")
    parser.add_argument("--steps", type=int, default=STEPS, help="of a run that measures accuracy (default %(default)s)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="to measure accuracy of (default both)")
    arguments = parser.parse_args()
    if arguments.command == "accuracy":
        accuracy(arguments.first, arguments.second, arguments.steps, arguments.tasks)
    else:
        {"speed": speed, "table": table}[arguments.command](arguments.first, arguments.second)


if __name__ == "__main__":
    main()
