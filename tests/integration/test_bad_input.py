"""Bad requests: the right code, a text that says what was expected and what came, no harm done."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc
import pytest

from headrace.errors import unpack_status
from headrace.protocol import grpc_service_pb2 as pb

if TYPE_CHECKING:
    from conftest import Served

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
Change = Callable[[pb.ModelInferRequest], object]


def good(rows: int = 1) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="sums")
    message.inputs.add(name="a", datatype="FP32", shape=[rows, 2])
    message.inputs.add(name="tags", datatype="BYTES", shape=[rows, 1])
    message.raw_input_contents.append(struct.pack(f"<{2 * rows}f", *range(2 * rows)))
    message.raw_input_contents.append((struct.pack("<I", 3) + b"tag") * rows)
    return message


def set_raw(index: int, data: bytes) -> Change:
    return lambda m: m.raw_input_contents.__setitem__(index, data)


def set_shape(index: int, *shape: int) -> Change:
    def change(message: pb.ModelInferRequest) -> None:
        del message.inputs[index].shape[:]
        message.inputs[index].shape.extend(shape)

    return change


def typed(message: pb.ModelInferRequest, values: list[float]) -> None:
    del message.raw_input_contents[:]
    message.inputs[0].contents.fp32_contents.extend(values)
    message.inputs[1].contents.bytes_contents.append(b"tag")


CASES: dict[str, tuple[Change, grpc.StatusCode, str]] = {
    "unknown model": (
        lambda m: setattr(m, "model_name", "nobody"),
        NOT_FOUND,
        "Request for unknown model: 'nobody' is not found",
    ),
    "unknown version": (
        lambda m: setattr(m, "model_version", "9"),
        NOT_FOUND,
        "'sums' version 9 is not found",
    ),
    "version that is no number": (
        lambda m: setattr(m, "model_version", "new"),
        NOT_FOUND,
        "'sums' version new is not found",
    ),
    "broken model": (
        lambda m: setattr(m, "model_name", "broken"),
        grpc.StatusCode.UNAVAILABLE,
        "'broken' has no available versions",
    ),
    "wrong dtype": (
        lambda m: setattr(m.inputs[0], "datatype", "FP64"),
        INVALID,
        "inference input 'a' data-type is 'FP64', but model 'sums' expects 'FP32'",
    ),
    "wrong length": (
        set_shape(0, 1, 3),
        INVALID,
        "unexpected shape for input 'a' for model 'sums'. Expected [-1, 2], got [1, 3]",
    ),
    "wrong rank": (set_shape(0, 2), INVALID, "Expected [-1, 2], got [2]"),
    "no shape": (set_shape(0), INVALID, "Expected [-1, 2], got []"),
    "no rows": (set_shape(0, 0, 2), INVALID, "Expected [-1, 2], got [0, 2]"),
    "negative length": (set_shape(1, 1, -1), INVALID, "Expected [-1, -1], got [1, -1]"),
    "rows that differ": (
        set_shape(1, 2, 1),
        INVALID,
        "input 'tags' batch size does not match other inputs for 'sums'. Expected 1, got 2",
    ),
    "too many rows": (
        lambda m: m.CopyFrom(good(9)),
        INVALID,
        "inference request batch-size must be <= 8 for 'sums'; got 9",
    ),
    "byte count": (
        set_raw(0, b"\0" * 7),
        INVALID,
        "input byte size mismatch for input 'a' for model 'sums'. Expected 8, got 7",
    ),
    "BYTES cut short": (
        set_raw(1, struct.pack("<I", 9) + b"tag"),
        INVALID,
        "the contents of input 'tags' for model 'sums' are malformed",
    ),
    "BYTES with a tail": (
        set_raw(1, struct.pack("<I", 3) + b"tags"),
        INVALID,
        "the contents of input 'tags' for model 'sums' are malformed",
    ),
    "missing input": (
        lambda m: (m.inputs.pop(1), m.raw_input_contents.pop(1)),
        INVALID,
        "expected 3 inputs but got 1 inputs for model 'sums'; it takes 'a', 'b', 'tags'",
    ),
    "unknown input": (
        lambda m: setattr(m.inputs[0], "name", "x"),
        INVALID,
        "unexpected inference input 'x' for model 'sums'; it takes 'a', 'b', 'tags'",
    ),
    "same input twice": (
        lambda m: (m.inputs.append(m.inputs[0]), m.raw_input_contents.append(b"\0" * 8)),
        INVALID,
        "input 'a' for model 'sums' is given more than once",
    ),
    "unknown output": (
        lambda m: m.outputs.add(name="y"),
        INVALID,
        "unexpected inference output 'y' for model 'sums'; it gives 'sum', 'again'",
    ),
    "raw and typed": (
        lambda m: m.inputs[0].contents.fp32_contents.extend([1, 2]),
        INVALID,
        "contents field must not be specified when using raw_input_contents for 'a' "
        "for model 'sums'",
    ),
    "fewer raw contents than inputs": (
        lambda m: m.raw_input_contents.pop(),
        INVALID,
        "expected 2 raw input contents, one for each input not in shared memory, but got 1 "
        "for model 'sums'",
    ),
    "typed element count": (
        lambda m: typed(m, [1.0]),
        INVALID,
        "unexpected number of elements for input 'a' for model 'sums'. Expected 2, got 1",
    ),
    "negative priority": (
        lambda m: setattr(m.parameters["priority"], "int64_param", -1),
        INVALID,
        "parameter 'priority' for model 'sums': expected a value >= 0, got -1",
    ),
    "timeout that is no number": (
        lambda m: setattr(m.parameters["timeout"], "string_param", "soon"),
        INVALID,
        "parameter 'timeout' for model 'sums': expected an integer, got 'soon'",
    ),
    "reserved parameter": (
        lambda m: setattr(m.parameters["triton_x"], "bool_param", True),
        INVALID,
        "parameter 'triton_x' for model 'sums': names with the prefix 'triton_' are reserved",
    ),
    "parameter without value": (
        lambda m: m.parameters["mine"].SetInParent(),
        INVALID,
        "parameter 'mine' for model 'sums': has no value",
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_bad_request_is_refused_with_what_was_expected_and_its_neighbours_are_answered(
    served: Served, case: str
) -> None:
    change, code, text = CASES[case]
    bad = good()
    change(bad)
    neighbours = [served.stub.ModelInfer(good(rows)) for rows in (1, 2, 3)]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.ModelInfer(bad)
    assert (caught.value.code(), text in (caught.value.details() or "")) == (code, True), (
        caught.value.details()
    )
    for rows, response in zip((1, 2, 3), await asyncio.gather(*neighbours), strict=True):
        assert list(response.outputs[0].shape) == [rows, 2]
        assert response.raw_output_contents[0] == good(rows).raw_input_contents[0]


async def test_error_carries_its_reason_and_a_retry_hint_only_where_a_retry_makes_sense(
    served: Served,
) -> None:
    async def refused(model: str) -> tuple[str, float | None]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.stub.ModelInfer(pb.ModelInferRequest(model_name=model))
        trailers = dict(tuple(caught.value.trailing_metadata() or ()))
        status = unpack_status(trailers["grpc-status-details-bin"])
        assert status.reason is not None
        return status.reason, status.retry_after_s

    assert await refused("nobody") == ("unknown_model", None)
    assert await refused("broken") == ("model_unavailable", 1.0)


async def test_what_a_failing_model_says_stays_in_the_log(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    message = good()
    message.raw_input_contents[0] = struct.pack("<2f", -1e9, 0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.ModelInfer(message)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "model 'sums' failed to run this request"
    assert "a secret path" in caplog.text


async def test_callers_cannot_invent_metric_labels(served: Served) -> None:
    for name in ("x", "y", "sums"):
        with pytest.raises(grpc.aio.AioRpcError):
            await served.stub.ModelInfer(pb.ModelInferRequest(model_name=name))
    labels = {
        sample.labels["model"]
        for family in served.metrics.collect()
        for sample in family.samples
        if "model" in sample.labels
    }
    assert labels == {"", "sums"}
