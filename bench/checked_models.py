"""Models whose every answer can be checked, bit for bit: how to serve them, and what is right.

What floats are summed are small integers, which add up to the same in every order: an answer is
right or it is somebody else's. The right answers are computed here, by numpy, from what was sent.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]

IMAGE, HIDDEN, CLASSES = 784, 512, 10
LONGEST = 128
SIGNAL = 16_384


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """One model: `draw` makes the inputs of a valid request, `answer` what must come of them."""

    name: str
    write: Callable[[Path], None]
    draw: Callable[[np.random.Generator], Arrays]
    answer: Callable[[Arrays], Arrays]


def build(repository: Path, models: tuple[CheckedModel, ...]) -> None:
    """Write each of these models into a repository."""
    for model in models:
        (repository / model.name / "1").mkdir(parents=True)
        model.write(repository / model.name)


def differences(got: Arrays, expected: Arrays) -> str:
    """What is wrong with an answer; empty if nothing is."""
    if set(got) != set(expected):
        return f"expected the outputs {sorted(expected)}, got {sorted(got)}"
    for name, right in expected.items():
        if got[name].shape != right.shape:
            return f"output '{name}': expected the shape {right.shape}, got {got[name].shape}"
        # Numbers that are none are none on both sides.
        if not np.array_equal(got[name], right, equal_nan=right.dtype.kind == "f"):
            return f"output '{name}': other contents than the request's"
    return ""


# -- an exported network ------------------------------------------------------------------------


def _weights() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    random = np.random.default_rng(0)
    first = random.integers(-1, 2, (IMAGE, HIDDEN))
    second = random.integers(-1, 2, (HIDDEN, CLASSES))
    return first.astype(np.float32), second.astype(np.float32)


def _write_network(directory: Path) -> None:
    import torch  # only whoever builds the repository needs it

    first, second = map(torch.from_numpy, _weights())

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Parameter(first), torch.nn.Parameter(second)

        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"scores": torch.relu(image @ self.first) @ self.second}

    batch = torch.export.Dim("batch", max=64)
    example = (torch.zeros(2, IMAGE),)
    program = torch.export.export(Network().eval(), example, dynamic_shapes=({0: batch},))
    torch.export.save(program, directory / "1" / "model.pt2")
    (directory / "config.pbtxt").write_text("instance_group { kind: KIND_CPU count: 2 }\n")


def _draw_network(random: np.random.Generator) -> Arrays:
    rows = int(random.integers(1, 5))
    return {"image": random.integers(0, 4, (rows, IMAGE)).astype(np.float32)}


def _answer_network(inputs: Arrays) -> Arrays:
    first, second = _weights()
    return {"scores": np.maximum(inputs["image"] @ first, 0) @ second}


NETWORK = CheckedModel("network", _write_network, _draw_network, _answer_network)
"""784-512-10, exported, two workers."""


# -- models in Python ---------------------------------------------------------------------------


def _written(source: str) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        (directory / "1" / "model.py").write_text(textwrap.dedent(source))

    return write


def _draw_ragged(random: np.random.Generator) -> Arrays:
    shape = int(random.integers(1, 3)), int(random.integers(0, LONGEST + 1))
    return {"ids": random.integers(0, 1_000, shape)}


def _answer_ragged(inputs: Arrays) -> Arrays:
    ids = inputs["ids"]
    return {"codes": 3 * ids + 1, "total": ids.sum(axis=1, keepdims=True)}


RAGGED = CheckedModel(
    "ragged",
    _written(f"""
        from headrace_server import Model, TensorSpec

        class Ragged(Model):
            inputs = [
                TensorSpec("ids", "INT64", [-1], pad=7, bounds=[(0, {LONGEST})]),
                TensorSpec("mask", "BOOL", [-1], mask_of="ids"),
            ]
            outputs = [TensorSpec("codes", "INT64", [-1]), TensorSpec("total", "INT64", [1])]

            def forward(self, ids, mask):
                return {{"codes": 3 * ids + 1, "total": (ids * mask).sum(1, keepdim=True)}}
    """),
    _draw_ragged,
    _answer_ragged,
)
"""Requests of different lengths, padded with what would show, and masked."""


def _draw_signal(random: np.random.Generator) -> Arrays:
    return {"signal": random.integers(-99, 100, (1, SIGNAL)).astype(np.float32)}


def _answer_signal(inputs: Arrays) -> Arrays:
    signal = inputs["signal"]
    return {"louder": 2 * signal + 1, "mirrored": signal[:, ::-1].copy()}


SIGNALS = CheckedModel(
    "signals",
    _written(f"""
        from headrace_server import Model, TensorSpec

        class Signals(Model):
            inputs = [TensorSpec("signal", "FP32", [{SIGNAL}])]
            outputs = [
                TensorSpec("louder", "FP32", [{SIGNAL}]), TensorSpec("mirrored", "FP32", [{SIGNAL}])
            ]

            def forward(self, signal):
                return {{"louder": 2 * signal + 1, "mirrored": signal.flip(1)}}
    """),
    _draw_signal,
    _answer_signal,
)
"""Larger bodies: 64 KiB in, twice that out."""


def _draw_small(random: np.random.Generator) -> Arrays:
    return {"x": random.integers(-(2**40), 2**40, (int(random.integers(1, 9)), 3))}


SMALL = CheckedModel(
    "small",
    _written("""
        from headrace_server import Model, TensorSpec

        class Small(Model):
            inputs = [TensorSpec("x", "INT64", [3])]
            outputs = [TensorSpec("y", "INT64", [3])]
            max_batch_size = 8

            def forward(self, x):
                return 2 * x + 1
    """),
    _draw_small,
    lambda inputs: {"y": 2 * inputs["x"] + 1},
)
"""Nothing but rows."""


def _draw_words(random: np.random.Generator) -> Arrays:
    shape = int(random.integers(1, 5)), int(random.integers(1, 4))
    words = [random.bytes(int(random.integers(0, 12))) for _ in range(shape[0] * shape[1])]
    elements = np.empty(len(words), dtype=object)
    elements[:] = words
    return {"words": elements.reshape(shape)}


def _answer_words(inputs: Arrays) -> Arrays:
    words = inputs["words"]
    mirrored = np.empty(words.shape, dtype=object)
    mirrored.reshape(-1)[:] = [word[::-1] for word in words.reshape(-1)]
    lengths = np.array([[sum(map(len, row))] for row in words], dtype=np.int32)
    return {"mirrored": mirrored, "length": lengths.reshape(len(words), 1)}


WORDS = CheckedModel(
    "words",
    _written("""
        import numpy as np
        from headrace_server import Model, TensorSpec

        class Words(Model):
            inputs = [TensorSpec("words", "BYTES", [-1])]
            outputs = [TensorSpec("mirrored", "BYTES", [-1]), TensorSpec("length", "INT32", [1])]

            def forward(self, words):
                mirrored = np.empty(words.shape, dtype=object)
                mirrored.reshape(-1)[:] = [word[::-1] for word in words.reshape(-1)]
                lengths = [[sum(map(len, row))] for row in words]
                return {
                    "mirrored": mirrored,
                    "length": np.array(lengths, dtype=np.int32).reshape(len(words), 1),
                }
    """),
    _draw_words,
    _answer_words,
)
"""Elements of any bytes, in a dynamic dimension that is never padded."""


def _draw_mixed(random: np.random.Generator) -> Arrays:
    rows = int(random.integers(1, 5))
    inputs: dict[str, npt.NDArray[Any]] = {
        "half": random.integers(-9, 10, (rows, 2, 2)).astype(np.float16),
        "flag": random.integers(0, 2, (rows, 1)).astype(bool),
    }
    if random.random() < 0.5:
        inputs["byte"] = random.integers(0, 100, (rows, 1)).astype(np.uint8)
    return inputs


def _answer_mixed(inputs: Arrays) -> Arrays:
    byte = inputs.get("byte", np.full((len(inputs["half"]), 1), 5, np.uint8))
    with np.errstate(over="ignore", invalid="ignore"):
        doubled = inputs["half"] + inputs["half"]
    return {"doubled": doubled, "inverted": ~inputs["flag"], "next": byte + np.uint8(1)}


MIXED = CheckedModel(
    "mixed",
    _written("""
        from headrace_server import Model, TensorSpec

        class Mixed(Model):
            inputs = [
                TensorSpec("half", "FP16", [2, 2]),
                TensorSpec("flag", "BOOL", [1]),
                TensorSpec("byte", "UINT8", [1], default=5),
            ]
            outputs = [
                TensorSpec("doubled", "FP16", [2, 2]),
                TensorSpec("inverted", "BOOL", [1]),
                TensorSpec("next", "UINT8", [1]),
            ]
            max_batch_size = 4

            def forward(self, half, flag, byte):
                return {"doubled": half + half, "inverted": ~flag, "next": byte + 1}
    """),
    _draw_mixed,
    _answer_mixed,
)
"""Several datatypes, and an input that may be left out."""


def _draw_whole(random: np.random.Generator) -> Arrays:
    shape = int(random.integers(0, 5)), int(random.integers(1, 5))
    return {"table": random.integers(-1_000, 1_000, shape).astype(np.int32)}


WHOLE = CheckedModel(
    "whole",
    _written("""
        from headrace_server import Model, TensorSpec

        class Whole(Model):
            inputs = [TensorSpec("table", "INT32", [-1, -1])]
            outputs = [TensorSpec("turned", "INT32", [-1, -1])]
            max_batch_size = 0

            def forward(self, table):
                return table.T.contiguous()
    """),
    _draw_whole,
    lambda inputs: {"turned": inputs["table"].T.copy()},
)
"""No batch dimension."""


def _draw_letters(random: np.random.Generator) -> Arrays:
    texts = [random.bytes(int(random.integers(0, 65))) for _ in range(int(random.integers(1, 3)))]
    elements = np.empty(len(texts), dtype=object)
    elements[:] = texts
    return {"text": elements.reshape(len(texts), 1)}


def _answer_letters(inputs: Arrays) -> Arrays:
    texts = inputs["text"][:, 0]
    longest = max(map(len, texts))
    codes = np.array([list(text.ljust(longest, b".")) for text in texts], dtype=np.int64)
    codes = codes.reshape(len(texts), longest)
    return {"upper": codes + 1, "sum": codes.sum(axis=1, keepdims=True)}


LETTERS = CheckedModel(
    "letters",
    _written("""
        import torch
        from headrace_server import Model, TensorSpec

        class Letters(Model):
            inputs = [TensorSpec("text", "BYTES", [1])]
            prepared = [
                TensorSpec("codes", "INT64", [-1], pad=99, bounds=[(0, 64)]),
                TensorSpec("mask", "BOOL", [-1], mask_of="codes"),
            ]
            outputs = [TensorSpec("upper", "INT64", [-1]), TensorSpec("sum", "INT64", [1])]
            max_batch_size = 16

            def prepare(self, text):
                longest = max(map(len, text[:, 0]))
                codes = [list(word.ljust(longest, b".")) for word in text[:, 0]]
                return torch.tensor(codes, dtype=torch.int64).reshape(len(text), longest)

            def forward(self, codes, mask):
                return {"upper": codes + 1, "sum": (codes * mask).sum(1, keepdim=True)}
    """),
    _draw_letters,
    _answer_letters,
)
"""Prepared per request, by a worker of its own."""

SOAKED = (NETWORK, RAGGED, SIGNALS)
FUZZED = (SMALL, RAGGED, WORDS, MIXED, WHOLE, LETTERS)
