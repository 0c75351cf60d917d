"""What is served and asked: three models, their inputs, and the answers that are right."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from examples.sentences import build as encoder_files
from examples.sentences.corpus import sentences

from bench.peers.served import networks
from bench.peers.wire import Array, Wire

TOLERANCE = 1e-4
"""How far an answer may lie from the right one: batches are summed in another order than rows."""

CHECKED = 24
"""Inputs of a workload that each server must answer rightly, all at once, before it is timed."""


class WrongAnswerError(Exception):
    """A server answered, but not what the model says."""


@dataclass(frozen=True, eq=False)
class Workload:
    """One model and its requests.

    Attributes:
        name: of the model, on every server.
        words: what it is, for the report.
        given: name of its input.
        inputs: one request each: FP32 or objects (UTF-8), [1, ...].
        expected: the right answers to the first `CHECKED` of them, without the batch dimension.
        directory: where the files of the sentence encoder lie.
    """

    name: str
    words: str
    given: str
    inputs: Sequence[Array]
    expected: Sequence[Array]
    directory: Path

    def bodies(self, wire: Wire) -> list[bytes]:
        """Every request as `wire` sends it."""
        return [wire.body(self.name, self.given, array) for array in self.inputs]

    def check(self, wire: Wire, address: str, *, echoes: bool) -> None:
        """Send some inputs at once and compare what comes back (an echo gives them back).

        Raises:
            WrongAnswerError: at least one answer is wrong.
            NoAnswerError: there was none.
        """

        def check_one(index: int) -> None:
            given = self.inputs[index]
            wanted = given[0] if echoes else self.expected[index]
            got = wire.post(address, wire.body(self.name, self.given, given))
            if echoes and given.dtype == object:
                right = got.tolist() == wanted.tolist()
            else:
                right = got.shape == wanted.shape and np.allclose(got, wanted, atol=TOLERANCE)
            if not right:
                raise WrongAnswerError(
                    f"wrong answer of {self.name} to input {index}: expected {wanted.ravel()[:4]} "
                    f"..., got {got.ravel()[:4]} ..."
                )

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(check_one, range(len(self.expected))))


def workloads(directory: Path) -> Mapping[str, Workload]:
    """All three; the files of the encoder go to `directory`."""
    encoder_files.build(directory)
    sys.path.append(os.fspath(directory))  # where the model finds `encoder`
    random = np.random.default_rng(0)

    def workload(name: str, words: str, given: str, inputs: Sequence[Array]) -> Workload:
        model = networks.load(name, directory)
        answers = [model(array)[0] for array in inputs[:CHECKED]]
        return Workload(name, words, given, inputs, answers, directory)

    images = [random.random((1, 3, 224, 224), dtype=np.float32) for _ in range(4)]
    vectors = [random.random((1, networks.FLOATS), dtype=np.float32) for _ in range(64)]
    texts = [np.array([[text.encode()]], dtype=object) for text in sentences()]
    return {
        item.name: item
        for item in (
            workload("mlp", "784-512-512-10 network", "input", vectors),
            workload("sentences", "all-MiniLM-L6-v2, text in, embedding out", "text", texts),
            workload("images", "3x224x224 FP32 in, three means out", "input", images),
        )
    }
