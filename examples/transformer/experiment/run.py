#!/usr/bin/env python3
"""Runs the experiment: pretrains one small BERT on Brown, fine-tunes it with every kind of feed-forward block, and
trains GPT-2s on Brown. Ended at any moment, it goes on from there when it is started again.

    run.py pretrain PROGRAMS DATA WORK                    # WORK/bert, WORK/gpt2: dense models
    run.py tasks PROGRAMS DATA WORK results.csv           # a line for each run
    run.py words PROGRAMS DATA WORK perplexity.csv        # GPT-2s, dense and with mixtures
    run.py choose PROGRAMS DATA WORK rates.csv            # learning rates of the dense model on dev, for RATE below

PROGRAMS has pretrain and glue, as cmake built them; DATA is what corpora.py made. What is run is told by the constants
below, the same for all rows. Python 3 alone.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
EXPERTS = 8
CONFIGURATIONS = [("dense", "", 0)]
CONFIGURATIONS += [("moe", level, k) for level in ("token", "sequence") for k in (1, 2, 4)]
CONFIGURATIONS += [("meo", level, k) for level in ("sequence", "token") for k in (1, 2, 4, 8)]
SEEDS = (1, 2, 3)
VOCABULARY = 8192

# Decided beforehand, from the dense model alone.
PRETRAINING = {"steps": 5000, "batch": 32, "tokens": 128, "rate": 1e-3}
TASKS = {"genre": {"text": "text"}, "spam": {"text": "text"}, "follows": {"text": "text", "pair": "pair"}}
FINE_TUNING = {"steps": 200, "batch": 16, "tokens": 128}
RATE, RATES = 1e-3, (1e-4, 3e-4, 1e-3)

WORDS_CONFIGURATIONS = [("dense", "", 0), ("moe", "token", 1), ("moe", "token", 2),
                        ("meo", "segment", 2), ("meo", "segment", 8)]
WORDS = {"steps": 300, "batch": 16, "tokens": 128, "segment-tokens": 32, "rate": 1e-3}

SIZES = {"width": 128, "layers": 4, "heads": 2, "hidden": 512, "positions": 128}

FIELDS = ["task", "ffn", "level", "top_k", "seed", "steps", "part", "loss", "accuracy", "macro_f1", "matthews",
          "flops_per_token", "tokens_per_second", "seconds"]
WORDS_FIELDS = ["ffn", "level", "top_k", "seed", "steps", "part", "loss", "validation_loss", "perplexity",
                "validation_accuracy", "flops_per_token", "tokens_per_second", "seconds"]


def mixture_options(ffn, level, top_k):
    if ffn == "dense":
        return []
    options = [f"--ffn={ffn}", f"--level={level}", f"--experts={EXPERTS}", f"--top-k={top_k}"]
    if level == "segment":
        options.append(f"--segment-tokens={WORDS['segment-tokens']}")
    return options


def run_program(command, work):
    """Ends as it should, or has left a checkpoint with which the same command goes on. Returns the log's last line, of
    which seconds, tokens a second and FLOPs a token are those of the whole run."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, log = work / "checkpoint.safetensors", work / "log.csv"
    resume = [f"--resume={checkpoint}"] if checkpoint.exists() else []
    subprocess.run([*command, f"--checkpoint={checkpoint}", f"--log={log}", *resume], check=True)
    with open(log, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    seconds = sum(float(line["seconds"]) for line in lines)
    tokens = sum(float(line["seconds"]) * float(line["tokens_per_second"]) for line in lines)
    return {**lines[-1], "seconds": round(seconds, 3), "tokens_per_second": round(tokens / seconds)}


def write_model(folder, family, vocabulary):
    """config.json and the vocabulary, without parameters."""
    subprocess.run(["python3", HERE / "vocabulary.py", family, str(VOCABULARY), *vocabulary, folder], check=True)
    if family == "bert":
        config = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": SIZES["width"],
                  "num_hidden_layers": SIZES["layers"], "num_attention_heads": SIZES["heads"],
                  "intermediate_size": SIZES["hidden"], "max_position_embeddings": SIZES["positions"]}
    else:
        config = {"model_type": "gpt2", "n_embd": SIZES["width"], "n_layer": SIZES["layers"],
                  "n_head": SIZES["heads"], "n_inner": SIZES["hidden"], "n_positions": SIZES["positions"]}
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": VOCABULARY}, indent=2) + "\n")


def pretrain(programs, data, work):
    for family in ("bert", "gpt2"):
        start = work / f"{family}-start"
        if not (start / "config.json").exists():
            write_model(start, family, [data / "brown/train.txt"])
    if not (work / "bert/model.safetensors").exists():
        run_program([programs / "pretrain", work / "bert-start", f"--steps={PRETRAINING['steps']}",
                     f"--batch={PRETRAINING['batch']}", f"--tokens={PRETRAINING['tokens']}",
                     f"--learning-rate={PRETRAINING['rate']}", "--report=500",
                     f"--validation={data / 'brown/dev.txt'}", f"--save={work / 'bert'}", data / "brown/train.txt"],
                    work / "pretraining")


class Results:
    """A table that grows by a line a run."""

    def __init__(self, path, fields):
        self.path, self.fields = path, fields
        self.keys = [field for field in ("task", "ffn", "level", "top_k", "seed", "steps", "part", "rate")
                     if field in fields]
        self.done = set()
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                self.done = {tuple(row[key] for key in self.keys) for row in csv.DictReader(file)}

    def has(self, row):
        return tuple(str(row[key]) for key in self.keys) in self.done

    def add(self, row):
        is_new = not self.path.exists()
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.fields, extrasaction="ignore", lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            os.fsync(file.fileno())


def fine_tune(programs, data, work, row, rate):
    options = [f"--{name}={column}" for name, column in TASKS[row["task"]].items()]
    folder = work / f"run-{row['seed']}"
    name = json.dumps({**row, "rate": rate})
    if not (folder / "of.json").exists() or (folder / "of.json").read_text() != name:  # else it goes on
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "of.json").write_text(name)
    command = [programs / "glue", work / "bert", f"--train={data / row['task'] / 'train.tsv'}",
               f"--dev={data / row['task'] / (row['part'] + '.tsv')}", "--label=label", *options,
               *mixture_options(row["ffn"], row["level"], row["top_k"]), f"--steps={row['steps']}",
               f"--batch={FINE_TUNING['batch']}", f"--tokens={FINE_TUNING['tokens']}", f"--learning-rate={rate}",
               f"--seed={row['seed']}", f"--report={row['steps']}"]
    last = run_program(command, folder)
    return {**last, **row, "rate": rate}


def tasks(programs, data, work, path, seeds):
    results = Results(path, FIELDS)
    for seed in seeds:
        for task in TASKS:
            for ffn, level, top_k in CONFIGURATIONS:
                row = {"task": task, "ffn": ffn, "level": level, "top_k": top_k, "seed": seed,
                       "steps": FINE_TUNING["steps"], "part": "test"}
                if not results.has(row):
                    results.add(fine_tune(programs, data, work, row, RATE))


def choose(programs, data, work, path, _):
    results = Results(path, ["rate", *FIELDS])
    for task in TASKS:
        for rate in RATES:
            row = {"task": task, "ffn": "dense", "level": "", "top_k": 0, "seed": 1, "steps": FINE_TUNING["steps"],
                   "part": "dev"}
            if not results.has({**row, "rate": rate}):
                results.add(fine_tune(programs, data, work, row, rate))


def words(programs, data, work, path, seeds):
    results = Results(path, WORDS_FIELDS)
    for seed in seeds:
        dense_flops = None
        for ffn, level, top_k in WORDS_CONFIGURATIONS:
            for equal in ("steps", "flops"):
                steps = WORDS["steps"]
                if equal == "flops":  # as many steps as the dense model's FLOPs pay for
                    if ffn == "dense":
                        continue
                    steps = round(WORDS["steps"] * dense_flops / flops)
                row = {"ffn": ffn, "level": level, "top_k": top_k, "seed": seed, "steps": steps, "part": "test"}
                if not results.has(row):
                    folder = work / f"words-{ffn}-{level}-{top_k}-{seed}-{steps}"
                    last = run_program(
                        [programs / "pretrain", work / "gpt2-start", *mixture_options(ffn, level, top_k),
                         f"--steps={steps}", f"--batch={WORDS['batch']}", f"--tokens={WORDS['tokens']}",
                         f"--learning-rate={WORDS['rate']}", f"--seed={seed}", f"--report={max(1, steps // 4)}",
                         f"--validation={data / 'brown/test.txt'}", data / "brown/train.txt"], folder)
                    shutil.rmtree(folder)
                    results.add({**last, **row})
                with open(path, newline="", encoding="utf-8") as file:
                    same = [line for line in csv.DictReader(file)
                            if all(line[key] == str(row[key]) for key in results.keys)]
                flops = float(same[0]["flops_per_token"])
                dense_flops = flops if ffn == "dense" else dense_flops


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("pretrain", "choose", "tasks", "words"))
    parser.add_argument("programs", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path, help="folder for models and what is under way")
    parser.add_argument("results", type=Path, nargs="?", help="the CSV that lines are added to")
    parser.add_argument("--seeds", type=int, nargs="+", choices=SEEDS, default=SEEDS, metavar="S",
                        help="these alone: another process can run others at the same time, for the same CSV")
    arguments = parser.parse_args()
    if (arguments.command == "pretrain") != (arguments.results is None):
        parser.error("choose, tasks and words need a CSV, pretrain none")
    arguments.work.mkdir(parents=True, exist_ok=True)
    paths = [path.resolve() for path in (arguments.programs, arguments.data, arguments.work)]
    if arguments.results is not None:
        paths += [arguments.results, arguments.seeds]
    {"pretrain": pretrain, "choose": choose, "tasks": tasks, "words": words}[arguments.command](*paths)


if __name__ == "__main__":
    main()
