"""Which batches a freshly loaded model is timed with, and whether old timings still hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from headrace_server.core.cost import Sample
from headrace_server.models.spec import MadeInput, Making, ModelSpec, TensorSpec
from headrace_server.models.warmup import DEFAULT_LENGTH
from headrace_server.workers import sweep as module
from headrace_server.workers.sweep import BUDGET_S, can_sweep, still_holds, sweep
from paced_program import PacedProgram, spec_of

FIXED = spec_of(TensorSpec("x", "FP32", [4]), max_batch_size=64)
RAGGED = spec_of(TensorSpec("ids", "INT64", [-1], pad=0), TensorSpec("mask", "BOOL", [-1], pad=0))

Pace = Callable[[int, int], float]
Paced = Callable[[ModelSpec, Pace], PacedProgram]


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> Paced:
    def build(spec: ModelSpec, seconds: Pace) -> PacedProgram:
        program = PacedProgram(spec, seconds)
        monkeypatch.setattr(module, "perf_counter", program.clock)
        return program

    return build


def rows_of(samples: tuple[Sample, ...], length: int = 0) -> list[int]:
    return [rows for rows, sampled, _ in samples if sampled == length]


def test_sizes_are_dense_enough_to_show_steps_and_reach_the_largest_batch(paced: Paced) -> None:
    samples = sweep(paced(FIXED, lambda rows, _: 0.001 * rows).loaded())
    assert rows_of(samples) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert all(seconds == pytest.approx(0.001 * rows) for rows, _, seconds in samples)


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(0, [1]), (1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (5, [1, 2, 3, 4, 5]), (6, [1, 2, 3, 4, 6])],
)
def test_sizes_end_with_the_largest_batch(paced: Paced, most: int, sizes: list[int]) -> None:
    spec = spec_of(TensorSpec("x", "FP32", [4]), max_batch_size=most)
    assert rows_of(sweep(paced(spec, lambda rows, _: 0.001).loaded())) == sizes


def test_a_slow_model_is_timed_no_longer_than_the_budget(paced: Paced) -> None:
    program = paced(FIXED, lambda rows, _: 0.02 * rows)
    samples = sweep(program.loaded())
    assert program.now_s <= BUDGET_S
    assert rows_of(samples) == [1, 2, 3, 4, 6, 8, 16], "reach goes before density"


def test_one_batch_is_timed_however_long_it_takes(paced: Paced) -> None:
    assert rows_of(sweep(paced(FIXED, lambda rows, _: 10.0 * rows).loaded())) == [1]


def test_every_length_gets_its_share_of_the_time(paced: Paced) -> None:
    program = paced(RAGGED, lambda rows, length: 0.002 + 0.0005 * rows * length)
    samples = sweep(program.loaded())
    assert program.now_s <= BUDGET_S
    assert {length for _, length, _ in samples} == {8, 32, 128}
    assert len(rows_of(samples, 128)) >= 3


def test_lengths_stay_within_the_bounds_of_every_ragged_input(paced: Paced) -> None:
    spec = spec_of(
        TensorSpec("ids", "INT64", [-1], pad=0, bounds=[(10, 64)]),
        TensorSpec("mask", "BOOL", [-1], pad=0, bounds=[(1, -1)]),
    )
    samples = sweep(paced(spec, lambda rows, length: 1e-4).loaded())
    assert sorted({length for _, length, _ in samples}) == [10, 32, 64]


def test_what_is_concatenated_is_timed_as_requests_without_a_length(paced: Paced) -> None:
    program = paced(spec_of(TensorSpec("x", "FP32", [-1], flat=True)), lambda rows, _: 1e-4 * rows)
    samples = sweep(program.loaded())
    assert rows_of(samples) == [1, 2, 3, 4, 6, 8, 12, 16]
    assert program.shapes[-1] == (12 * DEFAULT_LENGTH,)


def test_masks_are_made_for_the_batches_that_are_timed(paced: Paced) -> None:
    mask = MadeInput(TensorSpec("mask", "BOOL", [-1]), Making.MASK, "ids")
    spec = replace(spec_of(TensorSpec("ids", "INT64", [-1], pad=0)), made=(mask,))
    program = paced(spec, lambda rows, length: 1e-4)
    assert {length for _, length, _ in sweep(program.loaded())} == {8, 32, 128}
    assert program.last["mask"].shape == program.last["ids"].shape
    assert program.last["mask"].all(), "rows of one length need no padding"


def test_a_shape_that_the_model_refuses_ends_that_direction_only(paced: Paced) -> None:
    def seconds(rows: int, length: int) -> float:
        if rows * length > 100:
            raise ValueError("too large")
        return 1e-4

    samples = sweep(paced(RAGGED, seconds).loaded())
    assert rows_of(samples, 8) == [1, 2, 4, 8]
    assert rows_of(samples, 32) == [1, 2]
    assert rows_of(samples, 128) == []


def test_batches_of_bytes_cannot_be_swept_but_what_is_prepared_of_them_can(paced: Paced) -> None:
    text = TensorSpec("text", "BYTES", [1])
    assert not can_sweep(paced(spec_of(text), lambda rows, _: 1.0).loaded())
    prepared = ModelSpec("m", 1, "test", 16, (text,), RAGGED.outputs, RAGGED.inputs)
    model = paced(prepared, lambda rows, length: 1e-4).loaded()
    assert can_sweep(model)
    assert {length for _, length, _ in sweep(model)} == {8, 32, 128}


class TestStillHolds:
    SAMPLES: tuple[Sample, ...] = ((1, 0, 0.001), (8, 0, 0.008), (64, 0, 0.064))

    @pytest.mark.parametrize(("factor", "holds"), [(1.0, True), (1.4, True), (1.6, False)])
    @pytest.mark.parametrize("slower", [True, False])
    def test_timings_hold_within_their_factor(
        self, paced: Paced, factor: float, holds: bool, slower: bool
    ) -> None:
        factor = factor if slower else 1 / factor
        program = paced(FIXED, lambda rows, _: factor * 0.001 * rows)
        assert still_holds(program.loaded(), self.SAMPLES) is holds
        assert {shape[0] for shape in program.shapes} == {8}, "the largest that takes little time"

    def test_a_slow_model_is_timed_with_its_smallest_batch(self, paced: Paced) -> None:
        program = paced(FIXED, lambda rows, _: 1.0 * rows)
        assert still_holds(program.loaded(), ((1, 0, 1.0), (2, 0, 2.0)))
        assert {shape[0] for shape in program.shapes} == {1}

    def test_ragged_inputs_get_the_length_that_was_timed(self, paced: Paced) -> None:
        program = paced(RAGGED, lambda rows, length: 1e-4 * rows * length)
        assert still_holds(program.loaded(), ((2, 32, 0.0064),))
        assert set(program.shapes) == {(2, 32)}

    def test_a_batch_that_fails_now_does_not_hold(self, paced: Paced) -> None:
        assert not still_holds(paced(FIXED, lambda rows, _: 1 // 0).loaded(), self.SAMPLES)
