"""Which batches are replayed as graphs, on a capture that records the call, not a GPU's work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch

from headrace_server.models.loading import LoadedModel
from headrace_server.models.program import Inputs, Parameters
from headrace_server.models.spec import ModelSpec, TensorSpec
from headrace_server.workers.cuda_graphs import (
    MAX_GRAPHS,
    Call,
    Capture,
    choose,
    favoured,
    why_not,
    with_graphs,
)

SPEC = ModelSpec(
    "model", 1, "pt2", 8, (TensorSpec("x", "FP32", (3,)),), (TensorSpec("y", "FP32", (3,)),)
)


class Squares:
    """An exported program as far as graphs know: y = x². Counts its calls."""

    example_shapes: Mapping[str, Sequence[int]] = {}
    overwrites_outputs = False

    def __init__(self, spec: ModelSpec = SPEC) -> None:
        self.spec = spec
        self.calls = 0

    def call(self, inputs: Inputs, parameters: Parameters | None) -> object:
        self.calls += 1
        x = inputs["x"]
        assert isinstance(x, torch.Tensor)
        return (x * x,)

    def close(self) -> None:
        pass


def recording(fault: float = 0.0) -> tuple[Capture, list[int]]:
    """A capture that does what CUDA's does, at the same addresses, and the rows of every replay."""
    replays: list[int] = []

    def capture(call: Call) -> tuple[Callable[[], None], Sequence[torch.Tensor]]:
        outputs = [torch.full_like(output, torch.nan) for output in call()]

        def replay() -> None:
            replays.append(len(outputs[0]))
            for output, value in zip(outputs, call(), strict=True):
                output.copy_(value + fault)

        return replay, outputs

    return capture, replays


SAMPLES = tuple((rows, 0, 10.0 + rows) for rows in (1, 2, 4, 8))
"""Seconds that no replay here takes: graphs always pay."""


def test_answers_are_the_program_s_also_where_a_graph_is_filled_up() -> None:
    capture, replays = recording()
    model, costs = with_graphs(LoadedModel(Squares(), "cpu"), SAMPLES, capture)
    replays.clear()
    kept = []
    for rows in range(1, 9):
        x = torch.rand(rows, 3)
        kept.append((x * x, model.run({"x": x})["y"]))
    assert replays == [1, 2, 4, 4, 8, 8, 8, 8]
    for expected, answer in kept:  # no later batch has written to them
        assert torch.equal(expected, answer)
    assert [(rows, length) for rows, length, _ in costs] == [(1, 0), (2, 0), (4, 0), (8, 0)]
    assert all(seconds < 1 for _, _, seconds in costs), "the scheduler plans with what it costs now"


def test_a_graph_with_other_answers_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    capture, _ = recording(fault=0.5)
    plain = LoadedModel(Squares(), "cpu")
    model, costs = with_graphs(plain, SAMPLES, capture)
    assert (model, costs) == (plain, SAMPLES)
    assert "no CUDA graph of 8 rows, nor of fewer: ValueError: the graph gives" in caplog.text


def test_what_cannot_be_captured_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(call: Call) -> tuple[Callable[[], None], Sequence[torch.Tensor]]:
        raise RuntimeError("operation not permitted when stream is capturing")

    model, costs = with_graphs(LoadedModel(Squares(), "cpu"), SAMPLES, refuse)
    x = torch.rand(2, 3)
    assert torch.equal(model.run({"x": x})["y"], x * x)
    assert costs == SAMPLES
    assert len(caplog.records) == 1


def test_graphs_that_do_not_pay_are_not_used() -> None:
    capture, replays = recording()
    samples = tuple((rows, 0, 1e-9 * rows) for rows in (1, 2, 4, 8))
    model, costs = with_graphs(LoadedModel(Squares(), "cpu"), samples, capture)
    replays.clear()
    model.run({"x": torch.rand(2, 3)})
    assert not replays
    assert costs == samples


@pytest.mark.parametrize(
    ("spec", "pure", "reason"),
    [
        (SPEC, True, ""),
        (SPEC, False, "it is no exported program without state"),
        (ModelSpec("m", 1, "pt2", 0, SPEC.inputs, SPEC.outputs), True, "no batch dimension"),
        (
            ModelSpec("m", 1, "pt2", 8, (TensorSpec("ids", "INT64", (-1,)),), SPEC.outputs),
            True,
            "the shape of its input 'ids' varies",
        ),
        (
            ModelSpec("m", 1, "pt2", 8, (TensorSpec("t", "BYTES", (1,)),), SPEC.outputs),
            True,
            "the shape of its input 't' varies",
        ),
    ],
)
def test_only_functions_of_inputs_of_one_shape_qualify(
    spec: ModelSpec, pure: bool, reason: str
) -> None:
    assert reason in why_not(spec, pure=pure)
    assert bool(reason) == bool(why_not(spec, pure=pure))


def test_sizes_are_favoured_as_long_as_more_rows_get_more_done() -> None:
    # 1 ms for a launch, 1 ms for every 4 rows: from 16 rows on, twice as many gain little.
    eager_s = {rows: 1e-3 + rows / 4e3 for rows in (1, 2, 4, 8, 16, 32, 64)}
    assert favoured(eager_s) == [1, 2, 4, 8, 16, 32, 64]
    assert favoured({rows: rows * 1e-3 for rows in (1, 2, 4)}) == [1]


def test_there_are_never_more_graphs_than_the_limit() -> None:
    eager_s = dict.fromkeys(range(1, 100), 1.0)
    sizes = favoured(eager_s)
    assert len(sizes) <= MAX_GRAPHS
    assert sizes == sorted(sizes)
    assert sizes[0] == 1


def test_a_batch_is_filled_up_only_where_that_is_sooner() -> None:
    eager_s = {1: 1.0, 2: 1.1, 4: 1.2, 8: 4.0}
    assert choose(eager_s, {4: 1.15, 8: 3.0}, 9) == {4: 4, 8: 8}
    assert choose(eager_s, {4: 1.05, 8: 5.0}, 9) == {2: 4, 3: 4, 4: 4}
