#!/usr/bin/env python3
"""Says what the experiment's results do for each of its claims, by the rules in README.md, as Markdown.

    claims.py results.csv [perplexity.csv]

A comparison of two rows is: above, below, or = where they do not differ. Python 3 alone.
"""

import csv
import statistics
import sys
from collections import defaultdict

SCORES = {"macro_f1": 1, "perplexity": -1}  # and which way is better


class Scores:
    """The scores of each row, by (ffn, level, K), on each task; greater is better."""

    def __init__(self, path, steps=None):
        self.scores, self.flops = defaultdict(list), defaultdict(list)
        with open(path, newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                if steps is not None and line["steps"] != steps:
                    continue
                name = next(name for name in SCORES if name in line)
                row = (line["ffn"], line["level"], int(line["top_k"]))
                self.scores[line.get("task", "words"), row].append(SCORES[name] * float(line[name]))
                self.flops[row].append(float(line["flops_per_token"]))
        self.tasks = list(dict.fromkeys(task for task, _ in self.scores))

    def compare(self, task, better, worse):
        """1: the first is above the second, -1 below, 0 neither; with its name."""
        first, second = self.scores[task, better], self.scores[task, worse]
        if len(first) < 2 or len(second) < 2:
            raise SystemExit(f"{task}: expected at least two seeds of {better} and {worse}, got {len(first)} and "
                             f"{len(second)}")
        spread = (statistics.variance(first) / len(first) + statistics.variance(second) / len(second)) ** 0.5
        difference = statistics.mean(first) - statistics.mean(second)
        return 0 if abs(difference) <= 2 * spread else 1 if difference > 0 else -1


def verdict(outcomes):
    """Of a comparison's outcomes on the tasks: it holds on two at least and is reversed on none, or the reverse."""
    for sign, name in ((1, "supported"), (-1, "refuted")):
        if outcomes.count(sign) >= min(2, len(outcomes)) and outcomes.count(-sign) == 0:
            return name
    return "open"


def line(claim, comparison, scores, better, worse, verdict_of=verdict):
    outcomes = [scores.compare(task, better, worse) for task in scores.tasks]
    cells = ", ".join(f"{task} {('=', 'above', 'below')[outcome]}" for task, outcome in zip(scores.tasks, outcomes))
    print(f"| {claim} | {comparison} | {cells} | {verdict_of(outcomes)} |")
    return outcomes


def main():
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    scores = Scores(sys.argv[1])
    print("| claim | first row, second row | the first on each task | |\n|---|---|---|---|")
    for level in ("sequence", "token"):
        line("1", f"MEO, {level} level: K = 8, K = 1", scores, ("meo", level, 8), ("meo", level, 1))
    if len(sys.argv) == 3:
        with open(sys.argv[2], newline="", encoding="utf-8") as file:
            steps = next(csv.DictReader(file))["steps"]  # dense, whose steps are the equal ones
        words = Scores(sys.argv[2], steps)
        line("1", "MEO, segment level: K = 8, K = 2", words, ("meo", "segment", 8), ("meo", "segment", 2))
    gains = line("2, a gain", "token level, K = 4: MoE, dense", scores, ("moe", "token", 4), ("dense", "", 0))
    cost = statistics.mean(scores.flops["meo", "token", 4]) / statistics.mean(scores.flops["dense", "", 0])

    def is_kept(outcomes):  # not below is enough, where there is a gain to keep
        if verdict(gains) != "supported":
            return "open"
        return verdict([outcome or 1 for outcome in outcomes]) if cost <= 1.1 else "refuted"

    line(f"2, kept at {cost:.2f} × dense", "token level, K = 4: MEO, MoE", scores, ("meo", "token", 4),
         ("moe", "token", 4), is_kept)
    for top_k in (4, 8):
        line("3", f"MEO, K = {top_k}: token level, sequence level", scores, ("meo", "token", top_k),
             ("meo", "sequence", top_k))


if __name__ == "__main__":
    main()
