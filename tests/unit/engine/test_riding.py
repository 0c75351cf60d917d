"""Who can ride with whom: batch keys and lengths from the shapes of a request."""

from __future__ import annotations

import pytest

from headrace_server.core.errors import Reason, ServingError
from headrace_server.engine.riding import RidingRules
from headrace_server.models.spec import ModelSpec, TensorSpec
from headrace_server.workers.executor import RequestTensors

Shape = tuple[int, ...] | None


def rules(*inputs: TensorSpec, max_batch_size: int = 8) -> RidingRules:
    return RidingRules(ModelSpec("m", 1, "python", max_batch_size, inputs, ()))


def request(*shapes: Shape) -> RequestTensors:
    return RequestTensors(1, [None if s is None else b"" for s in shapes], shapes, {})


def test_fixed_shapes_share_one_key_and_have_no_length() -> None:
    riding = rules(TensorSpec("x", "FP32", [4]))
    assert riding.of(request((1, 4))) == riding.of(request((3, 4))) == (None, 0)


def test_dynamic_dimensions_that_are_not_padded_must_be_equal() -> None:
    riding = rules(TensorSpec("x", "FP32", [-1, 3]))
    assert riding.of(request((1, 5, 3))) == riding.of(request((2, 5, 3)))
    assert riding.of(request((1, 5, 3)))[0] != riding.of(request((1, 6, 3)))[0]
    assert riding.of(request((1, 5, 3)))[1] == 5


def test_ragged_dimensions_may_differ_and_give_the_length() -> None:
    riding = rules(TensorSpec("ids", "INT64", [-1], pad=0), TensorSpec("mask", "BOOL", [-1], pad=0))
    short, long = riding.of(request((1, 5), (1, 5))), riding.of(request((1, 9), (1, 9)))
    assert short[0] == long[0]
    assert (short[1], long[1]) == (5, 9)


def test_left_out_inputs_keep_requests_apart() -> None:
    riding = rules(TensorSpec("a", "FP32", [4]), TensorSpec("b", "FP32", [4], optional=True))
    assert riding.of(request((1, 4), None))[0] != riding.of(request((1, 4), (1, 4)))[0]


def test_an_input_with_a_default_keeps_nobody_apart() -> None:
    riding = rules(
        TensorSpec("ids", "INT64", [-1], pad=0),
        TensorSpec("types", "INT64", [-1], pad=0, default=0),
    )
    assert riding.of(request((1, 5), None)) == riding.of(request((1, 5), (1, 5)))
    fixed = rules(TensorSpec("a", "FP32", [4]), TensorSpec("b", "FP32", [4], default=1))
    assert fixed.of(request((1, 4), None)) == fixed.of(request((1, 4), (1, 4))) == (None, 0)


def test_concatenated_inputs_keep_nobody_apart_and_pad_nobody() -> None:
    flat = TensorSpec("x", "FP32", [-1, -1], flat=True)
    riding = rules(flat)
    assert riding.of(request((1, 5, 2))) == riding.of(request((2, 9, 1))) == (None, 0)
    mixed = rules(flat, TensorSpec("y", "FP32", [-1]))
    assert mixed.of(request((1, 5, 2), (1, 3))) == mixed.of(request((1, 1, 1), (1, 3)))
    assert mixed.of(request((1, 5, 2), (1, 3)))[1] == 3


def test_a_mask_of_another_length_than_its_data_is_refused() -> None:
    riding = rules(TensorSpec("ids", "INT64", [-1], pad=0), TensorSpec("mask", "BOOL", [-1], pad=0))
    with pytest.raises(ServingError) as caught:
        riding.of(request((1, 5), (1, 4)))
    assert caught.value.reason is Reason.UNEQUAL_LENGTHS
    details = {"model": "m", "input": "mask", "dimension": 1, "expected": 5, "got": 4}
    assert caught.value.details == details
