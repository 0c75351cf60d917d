"""What the server makes for a batch: masks, and the batch inputs of Triton's documentation."""

from __future__ import annotations

from typing import Any

import pytest

from headrace_server.models.making import make
from headrace_server.models.spec import MadeInput, Making, TensorSpec

SOURCE = TensorSpec("x", "FP32", [-1], flat=True)


def made(making: Making, shapes: list[tuple[int, ...]], datatype: str = "INT32") -> Any:
    tensor = TensorSpec("made", datatype, [-1])
    return make(MadeInput(tensor, making, "x"), SOURCE, shapes)


@pytest.mark.parametrize("datatype", ["INT32", "FP32"])
@pytest.mark.parametrize(
    ("making", "expected"),
    [
        (Making.ELEMENT_COUNT, [3, 4, 5]),
        (Making.ACCUMULATED_ELEMENT_COUNT, [3, 7, 12]),
        (Making.ACCUMULATED_ELEMENT_COUNT_WITH_ZERO, [0, 3, 7, 12]),
        (Making.MAX_ELEMENT_COUNT_AS_SHAPE, [0] * 5),
    ],
)
def test_counts_are_of_requests(making: Making, expected: list[int], datatype: str) -> None:
    array = made(making, [(1, 3), (1, 4), (1, 5)], datatype)
    assert array.dtype == ("<i4" if datatype == "INT32" else "<f4")
    assert array.tolist() == expected


def test_all_rows_of_a_request_count_as_one() -> None:
    assert made(Making.ELEMENT_COUNT, [(2, 3), (1, 1)]).tolist() == [6, 1]


def test_shapes_are_of_rows() -> None:
    shapes = [(2, 3, 1), (1, 2, 2)]
    assert made(Making.ITEM_SHAPE, shapes).tolist() == [[3, 1], [3, 1], [2, 2]]
    assert made(Making.ITEM_SHAPE_FLATTEN, shapes).tolist() == [3, 1, 3, 1, 2, 2]


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "INT64", "FP16", "FP32"])
def test_a_mask_is_one_where_a_request_has_data(datatype: str) -> None:
    entry = MadeInput(TensorSpec("m", datatype, [2, -1]), Making.MASK, "x")
    source = TensorSpec("x", "FP32", [4, -1], pad=0)
    mask = make(entry, source, [(1, 4, 1), (2, 4, 3)])
    assert mask.tolist() == [[[1, 0, 0]] * 2, [[1, 1, 1]] * 2, [[1, 1, 1]] * 2]
