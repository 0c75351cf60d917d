"""Tensor specs refuse what the protocol cannot express."""

import math
from typing import Any

import pytest

from headrace_server import TensorSpec

BOUNDED = TensorSpec("x", "FP32", [-1, 2, -1], bounds=[(3, 8), (0, -1), (1, -1)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", "float32", [1]), "expected a datatype among .*FP32.*, got 'float32'"),
        (("x", "FP32", [-2]), r"dimensions are >= 0 or -1, got \(-2,\)"),
        (("", "FP32", [1]), "expected the name of a tensor"),
        (("x", "FP32", [-1], False, None, [(0, 1), (0, 1)]), "expected bounds for 1 dimensions"),
        (("x", "FP32", [-1], False, None, [(-2, 1)]), r"0 <= least .*, got \(-2, 1\)"),
        (("x", "FP32", [-1], False, None, [(3, 2)]), r"least <= greatest.*, got \(3, 2\)"),
    ],
)
def test_impossible_tensors_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorSpec(*arguments)


@pytest.mark.parametrize(
    ("lengths", "admitted"),
    [
        *(((3, 2, 1), True), ((8, 2, 999), True)),
        *(((2, 2, 1), False), ((9, 2, 1), False), ((3, 2, 0), False)),
        *(((3, 1, 1), False), ((3, 2), False), ((), False)),
    ],
)
def test_lengths_are_admitted_within_their_bounds(lengths: tuple[int, ...], admitted: bool) -> None:
    assert BOUNDED.admits(lengths) is admitted


def test_without_bounds_any_length_is_admitted_but_a_negative_one() -> None:
    assert TensorSpec("x", "FP32", [-1]).admits([0])
    assert not TensorSpec("x", "FP32", [-1]).admits([-1])


def test_nearest_lengths_are_within_the_bounds() -> None:
    assert BOUNDED.nearest((16, 16, 16)) == (8, 2, 16)
    assert BOUNDED.nearest((1, 1, 0)) == (3, 2, 1)
    assert TensorSpec("x", "FP32", [-1, 4]).nearest((16, 16)) == (16, 4)


def test_errors_show_bounds_where_there_are_any() -> None:
    assert BOUNDED.described(batched=True) == "[-1, 3..8, 2, 1..]"
    assert TensorSpec("x", "FP32", [-1, 4]).described(batched=False) == "[-1, 4]"


@pytest.mark.parametrize(
    ("shape", "datatype", "filling", "message"),
    [
        ([2], "FP32", {"pad": 0}, r"pad needs exactly one dynamic dimension .* got FP32 \[2\]"),
        ([-1, -1], "FP32", {"pad": 0}, "pad needs exactly one dynamic dimension"),
        ([-1], "BYTES", {"pad": 0}, "a datatype other than BYTES and BF16"),
        ([-1], "BF16", {"mask_of": "y"}, "mask_of needs exactly one dynamic dimension and a"),
        ([-1], "FP32", {"default": 0}, "default needs fixed dimensions, or a pad,"),
        ([-1], "FP32", {"pad": 0, "flat": True}, r"pad needs .* got FP32 \[-1\], flat"),
        ([-1], "BOOL", {"mask_of": "y", "pad": 0}, "a mask is made whole, pad has no meaning"),
        ([-1], "UINT8", {"pad": -1}, "expected a pad that UINT8 holds, got -1"),
        ([-1], "INT8", {"pad": 128}, "expected a pad that INT8 holds, got 128"),
        ([-1], "INT64", {"pad": 0.5}, "expected a pad that INT64 holds, got 0.5"),
        ([-1], "INT64", {"pad": 2**53 + 2}, "expected a pad that INT64 holds"),
        ([-1], "INT64", {"pad": math.inf}, "expected a pad that INT64 holds, got inf"),
        ([-1], "FP16", {"pad": 1e5}, "expected a pad that FP16 holds, got 100000"),
        ([-1], "FP32", {"pad": math.nan}, "expected a pad that FP32 holds, got nan"),
        ([2], "BOOL", {"default": 2}, "expected a default that BOOL holds, got 2"),
    ],
)
def test_fillings_that_cannot_be_are_refused(
    shape: list[int], datatype: str, filling: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TensorSpec("x", datatype, shape, **filling)


def test_fillings_that_can_be_are_taken() -> None:
    assert TensorSpec("x", "FP32", [3, -1], pad=-math.inf).ragged_axis == 1
    assert TensorSpec("x", "INT8", [-1], pad=-128.0).pad == -128
    assert TensorSpec("x", "UINT64", [-1], pad=2**53).pad == 2**53


def test_an_input_with_a_default_is_optional() -> None:
    assert TensorSpec("x", "FP32", [2], default=1.5).optional
    assert not TensorSpec("x", "FP32", [2]).optional
