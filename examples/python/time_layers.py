"""Times the modules of meo_torch against a dense torch.nn.Linear of one expert, in turn, on one thread: 8 sequences of
128 tokens, 8 experts of 768 -> 3072 features. `--authors FILE` times the MEO authors' own classes too, FILE being
the layers.py of their repository (github.com/Shwai-He/MEO, transformers/models/layers.py).

    PYTHONPATH=<build folder> python3 time_layers.py [--authors FILE] [--rounds 10]
"""

import argparse
import importlib.util
import statistics
import time
import types

import torch

import meo_torch

FEATURES, HIDDEN, EXPERTS, SEQUENCES, TOKENS = 768, 3072, 8, 8, 128


def classes(authors):
    kinds = {("meo", kind): getattr(meo_torch, kind) for kind in ("MEO", "MoE")}
    if authors:
        spec = importlib.util.spec_from_file_location("authors", authors)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        kinds.update({("authors", kind): getattr(module, kind) for kind in ("MEO", "MoE")})
    return kinds


def infer(module, x):
    with torch.no_grad():
        module(x)


def train(module, x):
    y = module(x)
    y = y[0] + y[1] if isinstance(y, tuple) else y
    y.sum().backward()


def seconds(run):
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", metavar="FILE")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    x = torch.randn(SEQUENCES, TOKENS, FEATURES)

    runs = {}
    dense = torch.nn.Linear(FEATURES, HIDDEN)
    for what, run, mode in (("forward", infer, False), ("forward and backward", train, True)):
        runs[what, "dense", "", 1] = lambda run=run: run(dense, x.requires_grad_(run is train))
        for (whose, kind), Class in classes(arguments.authors).items():
            for k in (4, 8):
                config = types.SimpleNamespace(n_experts=EXPERTS, k=k, moe_level="sequence")
                module = Class(FEATURES, HIDDEN, config).train(mode)
                for name, parameter in module.named_parameters():
                    if name != "std":
                        torch.nn.init.normal_(parameter, std=0.02)
                module.train(mode)
                runs[what, whose, kind, k] = lambda run=run, module=module: run(module, x.requires_grad_(run is train))
    times = {key: [] for key in runs}
    for _ in range(arguments.rounds + 1):
        for key, run in runs.items():
            times[key].append(seconds(run))
    medians = {key: statistics.median(values[1:]) for key, values in times.items()}
    for (what, whose, kind, k), median in medians.items():
        ratio = median / medians[what, "dense", "", 1]
        print(f"{what:21} {whose:8} {kind:4} K = {k}: {1e3 * median:8.1f} ms, {ratio:5.2f} x dense")


if __name__ == "__main__":
    main()
