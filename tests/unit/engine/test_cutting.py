"""Each request gets its own rows of the batch, cut back to its own length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headrace_server.engine.cutting import ragged_output_axes, rows_of
from headrace_server.models.spec import ModelSpec, TensorSpec
from headrace_server.workers.executor import BatchOutput

RAGGED = TensorSpec("ids", "INT64", [-1], pad=0)


def output(array: np.ndarray) -> BatchOutput:
    return BatchOutput(array.shape, memoryview(array.tobytes()))


def test_rows_are_cut_out_of_the_batch() -> None:
    batch = np.arange(12, dtype=np.float32).reshape(4, 3)
    part = rows_of(output(batch), 1, 3, (), 0, 0)
    assert part.shape == (2, 3)
    assert part.data == batch[1:3].tobytes()


def test_bytes_rows_are_found_by_their_offsets() -> None:
    data = b"".join(len(t).to_bytes(4, "little") + t for t in (b"a", b"", b"long"))
    batch = BatchOutput((3, 1), memoryview(data), (0, 5, 9, 17))
    assert rows_of(batch, 1, 3, (), 0, 0).data == data[5:]
    assert rows_of(batch, 0, 1, (), 0, 0).data == data[:5]


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_answers_to_padding_are_left_out(dtype: type) -> None:
    batch = np.arange(2 * 5 * 3).reshape(2, 5, 3).astype(dtype)
    part = rows_of(output(batch), 0, 1, (1,), 2, 5)
    assert part.shape == (1, 2, 3)
    assert part.data == batch[0:1, :2].tobytes()


def test_a_request_without_elements_gets_none_whoever_it_rides_with() -> None:
    batch = np.arange(10, dtype=np.float32).reshape(2, 5)
    part = rows_of(output(batch), 0, 1, (1,), 0, 5)
    assert (part.shape, part.data) == ((1, 0), b"")


def test_a_request_as_long_as_the_batch_keeps_everything() -> None:
    batch = np.arange(10, dtype=np.int64).reshape(2, 5)
    assert rows_of(output(batch), 1, 2, (1,), 5, 5).data == batch[1:].tobytes()


def test_only_outputs_with_a_dynamic_dimension_of_ragged_models_are_cut() -> None:
    outputs = (TensorSpec("tokens", "FP32", [-1, 4]), TensorSpec("vector", "FP32", [4]))
    assert ragged_output_axes(ModelSpec("m", 1, "python", 8, (RAGGED,), outputs)) == [(1,), ()]
    plain = TensorSpec("ids", "INT64", [-1])
    assert ragged_output_axes(ModelSpec("m", 1, "python", 8, (plain,), outputs)) == [(), ()]


def test_every_dimension_that_follows_the_length_is_cut() -> None:
    outputs = (TensorSpec("attention", "FP32", [2, -1, -1]),)
    spec = ModelSpec("m", 1, "python", 8, (RAGGED,), outputs)
    assert ragged_output_axes(spec) == [(2, 3)]
    assert ragged_output_axes(replace(spec, following=((2,),))) == [(3,)], "it was found out"
    batch = np.arange(2 * 2 * 4 * 4, dtype=np.float32).reshape(2, 2, 4, 4)
    part = rows_of(output(batch), 1, 2, (2, 3), 3, 4)
    assert part.shape == (1, 2, 3, 3)
    assert part.data == batch[1:, :, :3, :3].tobytes()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_rows_of_different_shapes_are_dealt_out(dtype: type) -> None:
    elements = np.arange(2 * 3 + 2 * 3 + 4, dtype=dtype)
    batch = BatchOutput((16,), memoryview(elements.tobytes()), None, ((2, 3), (2, 3), (4, 1)))
    both, last = rows_of(batch, 0, 2, (), 0, 0), rows_of(batch, 2, 3, (), 0, 0)
    assert (both.shape, both.data) == ((2, 2, 3), elements[:12].tobytes())
    assert (last.shape, last.data) == ((1, 4, 1), elements[12:].tobytes())


def test_an_output_that_does_not_follow_the_padded_length_is_left_alone() -> None:
    batch = np.arange(14, dtype=np.int64).reshape(2, 7)
    assert rows_of(output(batch), 0, 1, (1,), 2, 5).data == batch[:1].tobytes()


def test_an_output_without_elements_is_cut_to_nothing() -> None:
    part = rows_of(output(np.zeros((2, 5, 0), dtype=np.float32)), 0, 1, (1,), 2, 5)
    assert (part.shape, part.data) == ((1, 5, 0), b"")
