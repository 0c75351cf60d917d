"""Shapes against specs: what is refused before the queue, and how the expectation is told."""

from __future__ import annotations

import math

import pytest

from headrace.protocol import grpc_service_pb2 as pb
from headrace_server.core.errors import Reason, ServingError
from headrace_server.models.spec import ModelSpec, TensorSpec
from headrace_server.transport.reading import MAX_BYTES_ELEMENTS, RequestReader


def reader(*shape: int, max_batch_size: int = 4, **options: object) -> RequestReader:
    tensor = TensorSpec("x", "UINT8", shape, **options)  # type: ignore[arg-type]
    return RequestReader(ModelSpec("m", 1, "python", max_batch_size, (tensor,), ()))


def request(*shape: int, nbytes: int | None = None) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype="UINT8", shape=shape)
    size = 1
    for dim in shape:
        size *= dim
    message.raw_input_contents.append(b"\0" * (size if nbytes is None else nbytes))
    return message


def refused(reading: RequestReader, message: pb.ModelInferRequest) -> dict[str, object]:
    with pytest.raises(ServingError) as caught:
        reading.read(message, None)
    assert caught.value.reason is Reason.WRONG_SHAPE
    return caught.value.details


def test_a_length_within_its_bounds_is_read() -> None:
    reading = reader(-1, 2, bounds=((3, 8), (0, -1)))
    call = reading.read(request(2, 5, 2), 1.5)
    assert (call.tensors.rows, call.nbytes, call.remaining_s) == (2, 20, 1.5)


@pytest.mark.parametrize("length", [2, 9])
def test_a_length_beyond_its_bounds_is_refused_with_them(length: int) -> None:
    reading = reader(-1, 2, bounds=((3, 8), (0, -1)))
    details = refused(reading, request(1, length, 2))
    assert (details["expected"], details["got"]) == ("[-1, 3..8, 2]", [1, length, 2])


def test_a_bound_on_one_side_only_is_told_so() -> None:
    assert refused(reader(-1, bounds=((4, -1),)), request(1, 3))["expected"] == "[-1, 4..]"


def test_models_without_a_batch_dimension_take_full_shapes() -> None:
    reading = reader(2, -1, max_batch_size=0)
    assert reading.read(request(2, 7), None).tensors.rows == 1
    assert refused(reading, request(7))["expected"] == "[2, -1]"


def test_a_tensor_without_elements_whose_strides_nobody_can_hold_is_refused() -> None:
    reading = reader(-1, -1, max_batch_size=0)
    assert reading.read(request(0, 7), None).tensors.shapes == [(0, 7)]
    why = refused(reading, request(0, 2**63 - 1, nbytes=0))
    assert why["expected"] == "[-1, -1], at most 1099511627776 without its zeros"


def test_a_scalar_per_row_is_a_shape_of_one_dimension() -> None:
    assert reader().read(request(3), None).tensors.rows == 3


def test_typed_contents_of_any_size_are_counted() -> None:
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype="UINT8", shape=[2, 2])
    message.inputs[0].contents.uint_contents.extend([1, 2, 3, 4])
    assert reader(2).read(message, None).tensors.data == [b"\1\2\3\4"]


@pytest.mark.parametrize(("transport_s", "expected_s"), [(None, 2.0), (1.5, 1.5), (3.0, 2.0)])
def test_the_earlier_of_two_deadlines_counts(transport_s: float | None, expected_s: float) -> None:
    message = request(1, 2)
    message.parameters["headrace_remaining_us"].int64_param = 2_000_000
    call = reader(2).read(message, transport_s)
    assert call.remaining_s == expected_s
    assert call.tensors.parameters == {}


def test_an_absurd_rank_is_refused_before_it_is_copied() -> None:
    details = refused(reader(-1), request(*[1] * 1_000, nbytes=1))
    assert details["got"] == "1000 dimensions"


def texts(shape: tuple[int, ...]) -> RequestReader:
    return RequestReader(ModelSpec("m", 1, "python", 0, (TensorSpec("x", "BYTES", shape),), ()))


@pytest.mark.parametrize("typed", [True, False])
def test_more_text_elements_than_the_loop_should_look_at_are_refused(typed: bool) -> None:
    count = MAX_BYTES_ELEMENTS + 1
    message = pb.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x", datatype="BYTES", shape=[count])
    if typed:
        tensor.contents.bytes_contents.extend([b""] * count)
    else:
        message.raw_input_contents.append(bytes(4 * count))
    with pytest.raises(ServingError) as caught:
        texts((-1,)).read(message, None)
    assert caught.value.reason is Reason.MALFORMED_CONTENTS
    assert f"at most {MAX_BYTES_ELEMENTS} elements, got {count}" in str(caught.value)


def test_an_output_asked_for_twice_is_refused() -> None:
    reading = RequestReader(ModelSpec("m", 1, "python", 4, (), (TensorSpec("y", "FP32", [1]),)))
    message = pb.ModelInferRequest(model_name="m")
    message.outputs.add(name="y")
    assert reading.read(message, None).wanted == (0,)
    message.outputs.add(name="y")
    with pytest.raises(ServingError) as caught:
        reading.read(message, None)
    assert caught.value.reason is Reason.DUPLICATE_OUTPUT


@pytest.mark.parametrize("max_batch_size", [0, 4])
@pytest.mark.parametrize(
    ("x", "y", "details"),
    [
        ((5, 5), (5, 3), None),
        ((5, 5), (4, 3), ("y", 0, 5, 4)),
        ((5, 6), (5, 3), ("x", 1, 5, 6)),
        ((5, 5), None, None),
    ],
)
def test_dimensions_of_one_length_are_held_against_each_other(
    max_batch_size: int,
    x: tuple[int, ...],
    y: tuple[int, ...] | None,
    details: tuple[str, int, int, int] | None,
) -> None:
    inputs = (TensorSpec("x", "UINT8", (-1, -1)), TensorSpec("y", "UINT8", (-1, -1), optional=True))
    one_length = ((("x", 0), ("x", 1), ("y", 0)),)
    spec = ModelSpec("m", 1, "python", max_batch_size, inputs, (), one_length=one_length)
    message = pb.ModelInferRequest(model_name="m")
    batch = (2,) if max_batch_size else ()
    for name, shape in (("x", x), ("y", y)):
        if shape is not None:
            message.inputs.add(name=name, datatype="UINT8", shape=batch + shape)
            message.raw_input_contents.append(bytes(math.prod(batch + shape)))
    if details is None:
        assert RequestReader(spec).read(message, None).tensors.shapes[0] == batch + x
        return
    with pytest.raises(ServingError) as caught:
        RequestReader(spec).read(message, None)
    name, dimension, expected, got = details
    assert caught.value.reason is Reason.UNEQUAL_LENGTHS
    assert caught.value.details == {
        "model": "m",
        "input": name,
        "dimension": dimension + len(batch),
        "expected": expected,
        "got": got,
    }
