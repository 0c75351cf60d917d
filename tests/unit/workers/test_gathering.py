"""The bytes of requests become the bytes of a batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.models.spec import MadeInput, Making, TensorSpec
from headrace_server.workers.executor import Parameter, RequestTensors
from headrace_server.workers.frames import RowParameters, TensorPlace
from headrace_server.workers.gathering import gather
from headrace_server.workers.regions import Region
from headrace_server.workers.slab import ALIGNMENT
from shared_memory import DIRECTORY, shared_file

FIXED = (TensorSpec("x", "INT32", [2]), TensorSpec("y", "UINT8", [1], optional=True))
RAGGED = (TensorSpec("ids", "INT32", [-1], pad=-7), TensorSpec("mask", "INT32", [-1], pad=0))


class Memory:
    """Dirty memory, as a slab is after its first batch."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.view = memoryview(bytearray())

    def reserve(self, nbytes: int) -> memoryview:
        self.asked.append(nbytes)
        self.view = memoryview(bytearray(b"\xee" * (nbytes + 32)))
        return self.view

    def array(self, place: TensorPlace, dtype: str) -> np.ndarray:
        data = self.view[place.offset : place.offset + place.nbytes]
        return np.frombuffer(data, dtype).reshape(place.shape)


def request(*arrays: np.ndarray | None, **parameters: Parameter) -> RequestTensors:
    rows = next(array.shape[0] for array in arrays if array is not None)
    return RequestTensors(
        rows,
        [None if array is None else array.tobytes() for array in arrays],
        [None if array is None else array.shape for array in arrays],
        parameters,
    )


def ints(*rows: list[int]) -> np.ndarray:
    return np.array(rows, "<i4")


def bools(*rows: list[int]) -> np.ndarray:
    return np.array(rows, "u1")


def test_a_lone_request_lies_there_as_it_came() -> None:
    memory = Memory()
    places, parameters = gather(FIXED, [request(ints([1, 2]), bools([3]))], memory.reserve)
    assert [(p.position, p.offset, p.nbytes, p.shape) for p in places] == [
        (0, 0, 8, (1, 2)),
        (1, ALIGNMENT, 1, (1, 1)),
    ]
    assert parameters is None
    assert memory.array(places[0], "<i4").tolist() == [[1, 2]]
    assert memory.array(places[1], "u1").tolist() == [[3]]


def test_requests_lie_side_by_side_in_order() -> None:
    memory = Memory()
    requests = [
        request(ints([1, 2]), bools([1])),
        request(ints([3, 4], [5, 6]), bools([2], [3])),
    ]
    places, _ = gather(FIXED, requests, memory.reserve)
    assert [p.shape for p in places] == [(3, 2), (3, 1)]
    assert memory.array(places[0], "<i4").tolist() == [[1, 2], [3, 4], [5, 6]]
    assert memory.array(places[1], "u1").tolist() == [[1], [2], [3]]


def test_memory_is_reserved_once_for_everything() -> None:
    memory = Memory()
    gather(FIXED, [request(ints([1, 2]), bools([3]))] * 2, memory.reserve)
    assert memory.asked == [2 * ALIGNMENT]


def test_an_optional_input_that_nobody_gave_takes_no_place() -> None:
    memory = Memory()
    places, _ = gather(FIXED, [request(ints([1, 2]), None)] * 2, memory.reserve)
    assert [p.position for p in places] == [0]


def test_byte_strings_of_any_length_follow_each_other() -> None:
    memory = Memory()
    texts = [b"\x02\0\0\0hi", b"\x05\0\0\0there\0\0\0\0"]
    requests = [
        RequestTensors(1, [texts[0]], [(1, 1)], {}),
        RequestTensors(2, [texts[1]], [(2, 1)], {}),
    ]
    (place,), _ = gather([TensorSpec("t", "BYTES", [1])], requests, memory.reserve)
    assert (place.shape, place.nbytes) == ((3, 1), 19)
    assert bytes(memory.view[:19]) == b"".join(texts)


def test_empty_tensors_are_no_trouble() -> None:
    memory = Memory()
    empty = RequestTensors(1, [b""], [(1, 0)], {})
    for requests in ([empty], [empty, empty]):
        (place,), _ = gather([TensorSpec("x", "INT32", [-1])], requests, memory.reserve)
        assert place.nbytes == 0
        assert place.shape == (len(requests), 0)


def test_a_model_without_batch_dimension_gets_its_shape_untouched() -> None:
    memory = Memory()
    whole = RequestTensors(1, [b"abc"], [(3,)], {})
    (place,), _ = gather([TensorSpec("x", "UINT8", [3])], [whole], memory.reserve)
    assert place.shape == (3,)


def test_ragged_rows_are_padded_to_the_longest() -> None:
    memory = Memory()
    requests = [
        request(ints([1, 2]), ints([1, 1])),
        request(ints([3, 4, 5], [6, 7, 8]), ints([1, 1, 1], [1, 1, 1])),
        request(ints([9]), ints([1])),
    ]
    places, _ = gather(RAGGED, requests, memory.reserve)
    ids, mask = (memory.array(place, "<i4") for place in places)
    assert ids.tolist() == [[1, 2, -7], [3, 4, 5], [6, 7, 8], [9, -7, -7]]
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("shape", [[-1, 2], [2, -1]])
def test_any_dimension_may_be_the_ragged_one(shape: list[int]) -> None:
    memory = Memory()
    spec = TensorSpec("x", "FP32", shape, pad=0)
    short, long = (
        np.arange(1, 1 + 2 * n, dtype="<f4").reshape([1, *(n if d == -1 else d for d in shape)])
        for n in (1, 3)
    )
    (place,), _ = gather([spec], [request(short), request(long)], memory.reserve)
    batch = memory.array(place, "<f4")
    inner = batch[0, :1] if shape[0] == -1 else batch[0, :, :1]
    assert inner.ravel().tolist() == short.ravel().tolist()
    assert batch[0].sum() == short.sum()
    assert batch[1].tolist() == long[0].tolist()


def test_what_is_flat_is_concatenated_whatever_its_shape() -> None:
    memory = Memory()
    spec = TensorSpec("x", "INT32", [-1, -1], flat=True)
    requests = [
        request(np.arange(6, dtype="<i4").reshape(1, 3, 2)),
        request(ints([7], [8])[..., None]),
    ]
    (place,), parameters = gather([spec], requests, memory.reserve)
    assert (place.shape, place.row_shapes) == ((8,), ((3, 2), (1, 1), (1, 1)))
    assert memory.array(place, "<i4").tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
    told = (RowParameters(1, {}), RowParameters(2, {}))
    assert parameters == told, "they say how many rows there are"


def test_what_was_left_out_is_filled_with_its_default() -> None:
    memory = Memory()
    inputs = (RAGGED[0], TensorSpec("types", "INT32", [-1], pad=0, default=5))
    requests = [request(ints([1, 2], [3, 4]), None), request(ints([5, 6, 7]), ints([8, 8, 8]))]
    places, _ = gather(inputs, requests, memory.reserve)
    assert memory.array(places[1], "<i4").tolist() == [[5, 5, 0], [5, 5, 0], [8, 8, 8]]
    (_, alone), _ = gather(inputs, requests[:1], memory.reserve)
    assert memory.array(alone, "<i4").tolist() == [[5, 5], [5, 5]]


def test_made_inputs_lie_behind_the_others() -> None:
    memory = Memory()
    mask = MadeInput(TensorSpec("mask", "BOOL", [-1]), Making.MASK, "ids")
    requests = [request(ints([1]), None), request(ints([2, 3], [4, 5]), None)]
    inputs = (RAGGED[0], TensorSpec("extra", "INT32", [1], optional=True))
    places, _ = gather(inputs, requests, memory.reserve, (mask,))
    assert [(place.position, place.shape) for place in places] == [(0, (3, 2)), (2, (3, 2))]
    assert memory.array(places[1], "?").tolist() == [[True, False], [True, True], [True, True]]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9)), min_size=1, max_size=8))
def test_every_ragged_row_is_found_again(sizes: list[tuple[int, int]]) -> None:
    memory = Memory()
    arrays = [
        np.full((rows, length), number + 1, "<i4") for number, (rows, length) in enumerate(sizes)
    ]
    places, _ = gather(RAGGED, [request(a, a) for a in arrays], memory.reserve)
    ids = memory.array(places[0], "<i4")
    row = 0
    for array in arrays:
        rows, length = array.shape
        assert (ids[row : row + rows, :length] == array).all()
        assert (ids[row : row + rows, length:] == -7).all()
        row += rows
    assert row == len(ids)


def test_parameters_are_given_per_request_when_anyone_has_some() -> None:
    memory = Memory()
    requests = [request(ints([1, 2]), None), request(ints([3, 4], [5, 6]), None, top_k=3)]
    _, parameters = gather(FIXED, requests, memory.reserve)
    assert parameters == (RowParameters(1, {}), RowParameters(2, {"top_k": 3}))


@pytest.mark.skipif(not DIRECTORY.is_dir(), reason="this system has no /dev/shm")
def test_rows_in_shared_memory_ride_with_others_and_are_padded_as_they_are() -> None:
    shared = ints([1, 2, 3], [4, 5, 6])
    with shared_file(shared.tobytes()) as file:
        spans = [Region("r", file.name, 0, 24).span(0, 24)]
        there = RequestTensors(2, spans, [shared.shape], {})
        memory = Memory()
        (place,), _ = gather(RAGGED[:1], [there, request(ints([7]))], memory.reserve)
        assert memory.array(place, "<i4").tolist() == [[1, 2, 3], [4, 5, 6], [7, -7, -7]]
        (place,), _ = gather(RAGGED[:1], [there], memory.reserve)
        assert memory.array(place, "<i4").tolist() == shared.tolist()
