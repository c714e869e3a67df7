"""The golden files of layers and blocks (tests/goldens/README.md) for Python."""

import json
import struct
from pathlib import Path

import numpy

FOLDER = Path(__file__).resolve().parents[2] / "goldens"


class Golden:
    def __init__(self, path):
        self.name = path.name
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8:8 + length])
        self.metadata = header.pop("__metadata__")
        self.tensors = {}
        for name, info in header.items():
            begin, end = info["data_offsets"]
            dtype = {"F32": numpy.float32, "F64": numpy.float64}[info["dtype"]]
            values = numpy.frombuffer(data[8 + length + begin:8 + length + end], dtype)
            self.tensors[name] = values.reshape(info["shape"])
        self.dtype = self.tensors["x"].dtype
        self.is_block = self.metadata.get("block") == "ffn"

    def __getitem__(self, name):
        return self.tensors[name]

    def __contains__(self, name):
        return name in self.tensors

    def number(self, key):
        return int(self.metadata[key])

    def under(self, prefix):
        return {name[len(prefix):]: value for name, value in self.tensors.items() if name.startswith(prefix)}

    def tolerance(self):
        """Twice what the README states of the file: for its roundings, and the library's own."""
        if self.dtype == numpy.float32:
            return 8e-7
        return 2e-7 if self.metadata["kind"] == "MoE" else 1e-15

    def gradient_tolerance(self):
        """Gradients inherit what outputs and losses are rounded to: the authors' loss is float32 everywhere."""
        return 2e-6 if self.dtype == numpy.float32 else 1e-6


def goldens():
    return [Golden(path) for path in sorted(FOLDER.glob("*.safetensors"))]


def largest_difference(got, expected):
    """In the maximum norm, relative to the expected values' own."""
    got, expected = numpy.asarray(got, numpy.float64), numpy.asarray(expected, numpy.float64)
    if got.shape != expected.shape:
        return float("inf")
    scale = numpy.abs(expected).max(initial=0.0)
    difference = numpy.abs(got - expected).max(initial=0.0)
    return difference / scale if scale > 0 else difference
