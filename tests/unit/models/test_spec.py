"""Tensor specs refuse what the protocol cannot express."""

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
