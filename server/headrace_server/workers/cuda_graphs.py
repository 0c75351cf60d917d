"""Replays the batches that pay as CUDA graphs: one launch instead of one for every operator.

A graph is a fixed sequence of kernels on fixed memory. So only programs qualify that are functions
of their inputs alone, with inputs of one shape for each number of rows, and only the batch sizes
that the scheduler will favour are worth their memory. Each graph has to give the answers that the
program gives; whatever cannot be captured runs as it did.

Workers only: imports torch.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from headrace_server.core.cost import Sample
from headrace_server.models.loading import LoadedModel
from headrace_server.models.program import Inputs, Parameters, Program
from headrace_server.models.row_check import all_close
from headrace_server.models.spec import DYNAMIC, ModelSpec
from headrace_server.models.torch_types import TORCH_DTYPES
from headrace_server.models.warmup import synthetic_inputs
from headrace_server.workers.sweep import timed

MAX_GRAPHS = 8
"""They share one pool of memory, but each has inputs and outputs of its own."""

GAINS = (1.05, 1.1, 1.2, 1.5, 2.0)
"""How much more rows per second make a larger batch worth a graph: the first of these that leaves
no more than `MAX_GRAPHS`."""

WARM_UPS = 3
"""Calls before a capture, as torch recommends: libraries set themselves up in the first ones."""

Call: TypeAlias = Callable[[], Sequence[torch.Tensor]]
Capture: TypeAlias = Callable[[Call], tuple[Callable[[], None], Sequence[torch.Tensor]]]
"""Records what a call does; returns what does it again, and the tensors that it then writes to."""

log = logging.getLogger("headrace.worker")


def with_graphs(
    model: LoadedModel, samples: Sequence[Sample], capture: Capture
) -> tuple[LoadedModel, tuple[Sample, ...]]:
    """The same model with its favoured batches captured, and what batches of it cost now.

    Args:
        model: warm already.
        samples: batches of it that were timed; they say which ones to capture.
        capture: what records.
    """
    reason = why_not(model.spec, pure=not model.program.overwrites_outputs)
    if reason or not samples:
        log.info("served without CUDA graphs: %s", reason or "nothing is known of its cost")
        return model, tuple(samples)
    eager_s = {rows: seconds for rows, _, seconds in samples}
    graphs: dict[int, _Graph] = {}
    # The largest first: the others then fit into the memory that it has taken.
    for rows in sorted(favoured(eager_s), reverse=True):
        try:
            graphs[rows] = _checked(model, rows, capture)
        except Exception as error:
            log.warning(
                "no CUDA graph of %d rows, nor of fewer: %s: %s", rows, type(error).__name__, error
            )
            break
    if not graphs:
        return model, tuple(samples)
    trial = _with(model, graphs, {rows: rows for rows in graphs})
    graph_s = {rows: timed(trial, rows, 0)[2] for rows in graphs}
    chosen = choose(eager_s, graph_s, model.spec.max_batch_size)
    log.info("CUDA graphs of %s rows", ", ".join(map(str, sorted({*chosen.values()}))) or "no")
    kept = {rows: graph for rows, graph in graphs.items() if rows in chosen.values()}
    costs = tuple(
        (rows, length, graph_s[chosen[rows]] if rows in chosen else seconds)
        for rows, length, seconds in samples
    )
    return _with(model, kept, chosen), costs


def why_not(spec: ModelSpec, *, pure: bool) -> str:
    """What speaks against graphs of a model; empty if nothing does."""
    if not pure:
        return "it is no exported program without state"
    if not spec.max_batch_size:
        return "it has no batch dimension"
    if spec.made:
        return "the server makes some of its inputs"
    for tensor in spec.model_inputs:
        if tensor.datatype == "BYTES" or tensor.flat or DYNAMIC in tensor.shape:
            return f"the shape of its input '{tensor.name}' varies"
        if tensor.optional and tensor.default is None:
            return f"its input '{tensor.name}' may be left out"
    return ""


def favoured(eager_s: Mapping[int, float]) -> list[int]:
    """The rows, ascending, of which larger batches get more done: where the scheduler goes."""
    kept: list[int] = []
    for gain in GAINS:
        kept, best = [], 0.0
        for rows, seconds in sorted(eager_s.items()):
            if rows / seconds >= best * gain:
                kept.append(rows)
                best = rows / seconds
        if len(kept) <= MAX_GRAPHS:
            break
    return kept[:MAX_GRAPHS]


def choose(eager_s: Mapping[int, float], graph_s: Mapping[int, float], most: int) -> dict[int, int]:
    """For each number of rows the size of the graph to run it with, filled up where there are
    fewer rows; none where the program as it is takes no longer.

    Args:
        eager_s: seconds of the program by rows.
        graph_s: seconds of each graph by its rows.
        most: rows of the largest batch.
    """
    chosen = {}
    for rows in range(1, most + 1):
        size = min((size for size in graph_s if size >= rows), default=None)
        # More rows never take less time, so this is the least that so many may take.
        least_s = max((s for known, s in eager_s.items() if known <= rows), default=0.0)
        if size is not None and graph_s[size] < least_s:
            chosen[rows] = size
    return chosen


def cuda_capture() -> Capture:
    """Captures CUDA graphs that share a pool of memory. Nothing else may use the device meanwhile,
    from any thread of this process."""
    pool = torch.cuda.graph_pool_handle()

    def capture(call: Call) -> tuple[Callable[[], None], Sequence[torch.Tensor]]:
        cuda: Any = torch.cuda  # whose constructors have no types
        aside = cuda.Stream()
        aside.wait_stream(cuda.current_stream())
        with cuda.stream(aside):
            for _ in range(WARM_UPS):
                call()
        before = cuda.current_stream()
        before.wait_stream(aside)
        graph = cuda.CUDAGraph()
        try:
            with cuda.graph(graph, pool=pool):
                answer = call()
        except BaseException:
            # Of a capture that was given up, torch 2.13 leaves the stream the current one and the
            # allocator, in some releases, in the belief that it goes on.
            cuda.set_stream(before)
            with contextlib.suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(cuda.current_device(), pool)
            raise
        return graph.replay, answer

    return capture


class _Graph:
    """A program on memory of its own, for one number of rows.

    Graphs of one pool write to each other's memory, answers included, so these are copied out on
    the same stream before anything else runs there.
    """

    def __init__(self, program: Program, spec: ModelSpec, rows: int, device: str, capture: Capture):
        self._inputs = {
            tensor.name: torch.zeros(
                (rows, *tensor.shape), dtype=TORCH_DTYPES[tensor.datatype], device=device
            )
            for tensor in spec.model_inputs
        }

        def call() -> Sequence[torch.Tensor]:
            answer = program.call(self._inputs, None)
            assert isinstance(answer, tuple), "an exported program returns its outputs in order"
            return answer

        self._replay, self._outputs = capture(call)

    def call(self, inputs: Inputs, rows: int) -> tuple[torch.Tensor, ...]:
        for name, own in self._inputs.items():
            value = inputs[name]
            assert isinstance(value, torch.Tensor)
            own[:rows].copy_(value)
        self._replay()
        return tuple(output[:rows].clone() for output in self._outputs)


def _checked(model: LoadedModel, rows: int, capture: Capture) -> _Graph:
    """Capture a graph. Raises whatever capturing raises, or `ValueError` for other answers than the
    program's."""
    with torch.inference_mode():
        graph = _Graph(model.program, model.spec, rows, model.device, capture)
        inputs = {
            name: value.to(model.device) if isinstance(value, torch.Tensor) else value
            for name, value in synthetic_inputs(model, rows).items()
        }
        expected: Any = model.program.call(inputs, None)
        if not all_close(expected, graph.call(inputs, rows)):
            raise ValueError("the graph gives other answers than the program")
    return graph


def _with(
    model: LoadedModel, graphs: Mapping[int, _Graph], chosen: Mapping[int, int]
) -> LoadedModel:
    by_rows = {rows: graphs[size] for rows, size in chosen.items()}
    return LoadedModel(_GraphedProgram(model.program, by_rows), model.device)


class _GraphedProgram:
    """See `Program`: one that runs some numbers of rows as graphs."""

    overwrites_outputs = False

    def __init__(self, program: Program, by_rows: Mapping[int, _Graph]) -> None:
        self._program = program
        self._by_rows = dict(by_rows)
        self.spec = program.spec
        self.example_shapes = program.example_shapes

    def call(self, inputs: Inputs, parameters: Parameters | None) -> object:
        """See `Program.call`."""
        rows = next(iter(inputs.values())).shape[0]
        graph = self._by_rows.get(rows)
        return self._program.call(inputs, parameters) if graph is None else graph.call(inputs, rows)

    def close(self) -> None:
        """See `Program.close`."""
        self._by_rows.clear()
        self._program.close()
