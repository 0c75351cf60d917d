"""Compares a model with and without its options: a `Task` on stdin, a `Comparison` on stdout.

Started as `python -m headrace_server.workers.comparison_main` by `comparison.compare`.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import msgspec
import numpy as np
import torch

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.models.load_options import without_options
from headrace_server.models.loading import LoadedModel, load_model
from headrace_server.models.program import Tensor
from headrace_server.models.repository import WARMUP_DIRECTORY, ModelKind, ModelSource
from headrace_server.models.warmup import synthetic_inputs, warm_up, warmup_inputs
from headrace_server.workers.comparison import Comparison, Speed, Task

PAIRS = 25
BUDGET_S = 2.0
"""Batches are timed in pairs, so that a noisy machine is noisy for both: so many, or what fits into
that time."""

SEED = 1

Inputs = dict[str, Tensor]


def main() -> int:
    """Answer one task; returns the exit status."""
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    # Models may print.
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    torch.set_num_threads(task.threads)
    compared = _compare(task)
    with open(answer, "wb") as file:
        file.write(msgspec.json.encode(compared))
    return 0


def _compare(task: Task) -> Comparison:
    config = ModelConfig.FromString(task.config)
    kind = ModelKind(task.kind)
    source = ModelSource(task.model, task.version, Path(task.file), kind, task.pickle)
    # Without the options first: what is compiled is settled for the process by its warm-up.
    plain, faster = (load_model(source, c, task.device) for c in (without_options(config), config))
    for model in (plain, faster):
        warm_up(model, config, source)
    torch.manual_seed(SEED)
    batches, what = _batches(plain, config, source)
    differences = _Differences()
    for inputs in batches:
        differences.add(plain.run_rows(inputs), faster.run_rows(inputs))
    return Comparison(
        what,
        differences.greatest,
        differences.greatest_relative,
        differences.least_cosine,
        differences.changed / max(1, differences.counted),
        tuple(_speed(plain, faster, inputs) for inputs in batches),
    )


def _batches(
    model: LoadedModel, config: ModelConfig, source: ModelSource
) -> tuple[list[Inputs], str]:
    """The batches to compare on, on the model's device, and what they are."""
    most = model.spec.max_batch_size
    if config.model_warmup:
        directory = source.config_file.parent / WARMUP_DIRECTORY
        samples = [inputs for _, inputs in warmup_inputs(model.spec, config, directory)]
        what = "model_warmup"
    else:
        samples = [synthetic_inputs(model, rows) for rows in sorted({1, max(1, most)})]
        what = "random numbers"
    return [
        {
            name: value.to(model.device) if isinstance(value, torch.Tensor) else value
            for name, value in inputs.items()
        }
        for inputs in samples
    ], what


class _Differences:
    def __init__(self) -> None:
        self.greatest = self.greatest_relative = 0.0
        self.least_cosine = 1.0
        self.changed = self.counted = 0

    def add(self, plain: dict[str, Tensor], faster: dict[str, Tensor]) -> None:
        """Take in the answers to one batch."""
        for name, value in plain.items():
            other = faster[name]
            if not isinstance(value, torch.Tensor) or not isinstance(other, torch.Tensor):
                self._add_exact(int(np.sum(np.not_equal(value, other))), int(np.size(value)))
            elif not value.dtype.is_floating_point:
                self._add_exact(int((value != other).sum()), value.numel())
            elif value.numel():
                self._add_floats(value.double().flatten(), other.double().flatten())

    def _add_exact(self, changed: int, counted: int) -> None:
        self.changed += changed
        self.counted += counted

    def _add_floats(self, plain: torch.Tensor, faster: torch.Tensor) -> None:
        same = (plain == faster) | (plain.isnan() & faster.isnan())  # infinities, too
        difference = float((plain - faster).abs().masked_fill(same, 0).max())
        largest = float(plain.abs().nan_to_num(0, 0, 0).max())
        self.greatest = max(self.greatest, difference)
        relative = difference / largest if largest else difference
        self.greatest_relative = max(self.greatest_relative, relative)
        finite = plain.isfinite() & faster.isfinite()
        a, b = plain[finite], faster[finite]
        lengths = float(a.norm() * b.norm())
        cosine = float(a @ b) / lengths if lengths else float(difference == 0)
        self.least_cosine = min(self.least_cosine, cosine)


def _speed(plain: LoadedModel, faster: LoadedModel, inputs: Inputs) -> Speed:
    first = next(iter(inputs.values()))
    rows = int(first.shape[0]) if plain.spec.max_batch_size else 1
    pairs = list(_pairs(lambda: _time(plain, inputs), lambda: _time(faster, inputs)))
    return Speed(rows, *(statistics.median(side) for side in zip(*pairs, strict=True)))


def _pairs(one: Callable[[], float], other: Callable[[], float]) -> Iterator[tuple[float, float]]:
    ends_s = perf_counter() + BUDGET_S
    for _ in range(PAIRS):
        yield one(), other()
        if perf_counter() > ends_s:
            return


def _time(model: LoadedModel, inputs: Inputs) -> float:
    started = perf_counter()
    model.run_rows(inputs)
    if torch.device(model.device).type == "cuda":
        torch.cuda.synchronize(model.device)
    return perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
