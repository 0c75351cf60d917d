"""Tensors in memory that clients share: found, bounded, read late, written straight."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from headrace.protocol import grpc_service_pb2 as pb
from shared_memory import DIRECTORY, shared_file

if TYPE_CHECKING:
    from conftest import Served

pytestmark = pytest.mark.skipif(not DIRECTORY.is_dir(), reason="this system has no /dev/shm")

NUMBERS = np.arange(16, dtype=np.float32)
TAGS_AT, ANSWER_AT = 64, 256
TAGS = b"\x02\x00\x00\x00hi\x00\x00\x00\x00"


@pytest.fixture
def file() -> Iterator[Path]:
    """64 bytes of numbers, at 64 two tags, at 256 room for answers."""
    with shared_file((NUMBERS.tobytes() + TAGS).ljust(512, b"\xee")) as file:
        yield file


@pytest.fixture
async def stub(sharing: Served, file: Path) -> Any:
    """A server that knows the file as the region `r`."""
    await sharing.stub.SystemSharedMemoryRegister(registration(file))
    return sharing.stub


def registration(
    file: Path, name: str = "r", **fields: int
) -> pb.SystemSharedMemoryRegisterRequest:
    fields = {"byte_size": 512, **fields}
    return pb.SystemSharedMemoryRegisterRequest(name=name, key=file.name, **fields)


def place(tensor: Any, nbytes: int, offset: int = 0, region: str = "r") -> None:
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = nbytes
    if offset:
        tensor.parameters["shared_memory_offset"].int64_param = offset


def request(first: int = 0, rows: int = 2) -> pb.ModelInferRequest:
    """Asks for `sum` of numbers in the region from `first` on; tags come with the message."""
    message = pb.ModelInferRequest(model_name="sums", id="mine")
    message.inputs.add(name="tags", datatype="BYTES", shape=[rows, 1])
    message.raw_input_contents.append(bytes(4) * rows)
    message.inputs.add(name="a", datatype="FP32", shape=[rows, 2])
    place(message.inputs[1], 8 * rows, 4 * first)
    message.outputs.add(name="sum")
    return message


def sums(answer: pb.ModelInferResponse) -> list[float]:
    return np.frombuffer(answer.raw_output_contents[0], np.float32).tolist()


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_input_is_read_from_its_region(stub: Any) -> None:
    assert sums(await stub.ModelInfer(request(4))) == [4, 5, 6, 7]


async def test_input_is_read_when_its_batch_is_gathered_and_not_before(
    sharing: Served, stub: Any, file: Path
) -> None:
    slow = request()
    slow.inputs[1].parameters.clear()
    slow.raw_input_contents.append(np.full(4, 1e7, np.float32).tobytes())
    busy = asyncio.ensure_future(stub.ModelInfer(slow))
    waiting = asyncio.ensure_future(stub.ModelInfer(request(rows=8)))
    (deployment,) = sharing.engine.deployments()
    while not deployment.queued_requests:
        await asyncio.sleep(0)
    with file.open("r+b") as opened:
        opened.write(bytes(64))
    await busy
    assert sums(await waiting) == [0] * 16


async def test_text_is_read_from_its_region(stub: Any) -> None:
    message = request()
    del message.raw_input_contents[:]
    place(message.inputs[0], len(TAGS), TAGS_AT)
    message.outputs[0].name = "again"
    answer = await stub.ModelInfer(message)
    assert answer.raw_output_contents == [TAGS]


async def test_output_is_written_to_its_region_and_the_answer_says_where(
    stub: Any, file: Path
) -> None:
    message = request()
    message.outputs.insert(0, pb.ModelInferRequest.InferRequestedOutputTensor(name="again"))
    place(message.outputs[1], 128, ANSWER_AT)
    answer = await stub.ModelInfer(message)
    assert [output.name for output in answer.outputs] == ["again", "sum"]
    assert answer.raw_output_contents == [bytes(8), b""]
    said = answer.outputs[1].parameters
    assert said["shared_memory_region"].string_param == "r"
    assert said["shared_memory_byte_size"].int64_param == 16
    assert said["shared_memory_offset"].int64_param == ANSWER_AT
    there = file.read_bytes()
    assert there[ANSWER_AT : ANSWER_AT + 16] == NUMBERS[:4].tobytes()
    assert there[ANSWER_AT + 16 :] == b"\xee" * (512 - ANSWER_AT - 16)


async def test_an_answer_may_take_the_place_of_its_input(stub: Any, file: Path) -> None:
    message = request()
    message.inputs.add(name="b", datatype="FP32", shape=[2, 2])
    place(message.inputs[2], 16, 16)
    place(message.outputs[0], 16)
    await stub.ModelInfer(message)
    assert np.fromfile(file, np.float32, 4).tolist() == [4, 6, 8, 10]


async def test_requests_of_one_batch_write_each_to_its_own_place(
    sharing: Served, stub: Any, file: Path
) -> None:
    messages = [request(2 * i, rows=1) for i in range(8)]
    for i, message in enumerate(messages):
        place(message.outputs[0], 8, ANSWER_AT + 8 * i)
    await asyncio.gather(*(stub.ModelInfer(message) for message in messages))
    assert file.read_bytes()[ANSWER_AT : ANSWER_AT + 64] == NUMBERS.tobytes()


async def test_streams_take_regions_too(stub: Any, file: Path) -> None:
    message = request()
    place(message.outputs[0], 16, ANSWER_AT)
    stream = stub.ModelStreamInfer(iter([message]))
    async for answer in stream:
        assert not answer.error_message
        assert answer.infer_response.raw_output_contents == [b""]
    assert file.read_bytes()[ANSWER_AT : ANSWER_AT + 16] == NUMBERS[:4].tobytes()


async def test_output_that_does_not_fit_is_tritons_error_and_its_neighbours_are_answered(
    stub: Any, file: Path
) -> None:
    small, fine = request(), request()
    place(small.outputs[0], 15, ANSWER_AT)
    place(fine.outputs[0], 16, ANSWER_AT + 64)
    refused = asyncio.ensure_future(refusal(stub.ModelInfer(small)))
    await stub.ModelInfer(fine)
    assert await refused == (
        grpc.StatusCode.INTERNAL,
        "shared memory size specified with the request for output 'sum' (15 bytes) should be at "
        "least 16 bytes to hold the results",
    )
    assert file.read_bytes()[ANSWER_AT : ANSWER_AT + 16] == b"\xee" * 16
    (told,) = (await stub.ModelStatistics(pb.ModelStatisticsRequest(name="sums"))).model_stats
    stats = told.inference_stats
    assert (stats.success.count, stats.fail.count) == (1, 1)


async def test_region_cut_short_fails_the_requests_that_lie_in_it_and_no_others(
    stub: Any, file: Path
) -> None:
    with shared_file(NUMBERS.tobytes()) as other:
        await stub.SystemSharedMemoryRegister(registration(other, "cut", byte_size=64))
        os.truncate(other, 4)
        reading, writing = request(), request()
        place(reading.inputs[1], 16, region="cut")
        place(writing.outputs[0], 16, region="cut")
        failed = [asyncio.ensure_future(refusal(stub.ModelInfer(m))) for m in (reading, writing)]
        assert sums(await stub.ModelInfer(request())) == [0, 1, 2, 3]
        for code, text in await asyncio.gather(*failed):
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "shared memory region 'cut' has shrunk since it was registered" in text


async def test_region_in_use_is_unregistered_and_its_request_answered(
    sharing: Served, stub: Any, file: Path
) -> None:
    slow = request(rows=1)
    with file.open("r+b") as opened:
        opened.write(np.full(2, 1e7, np.float32).tobytes())
    place(slow.outputs[0], 8, ANSWER_AT)
    answered = asyncio.ensure_future(stub.ModelInfer(slow))
    await asyncio.sleep(0)
    waiting = asyncio.ensure_future(stub.ModelInfer(request(2)))
    (deployment,) = sharing.engine.deployments()
    while not deployment.queued_requests:
        await asyncio.sleep(0)
    await stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest(name="r"))
    await answered
    assert np.frombuffer(file.read_bytes(), np.float32, 2, ANSWER_AT).tolist() == [1e7, 1e7]
    assert sums(await waiting) == [2, 3, 4, 5]
    code, text = await refusal(stub.ModelInfer(request()))
    assert (code, text) == (
        grpc.StatusCode.NOT_FOUND,
        "Unable to find shared memory region: 'r'",
    )


async def test_regions_are_listed_and_forgotten_alone_or_all(stub: Any, file: Path) -> None:
    await stub.SystemSharedMemoryRegister(registration(file, "s", offset=8, byte_size=16))
    ask = pb.SystemSharedMemoryStatusRequest
    listed = (await stub.SystemSharedMemoryStatus(ask())).regions
    assert sorted(listed) == ["r", "s"]
    one = (await stub.SystemSharedMemoryStatus(ask(name="s"))).regions["s"]
    assert (one.name, one.key, one.offset, one.byte_size) == ("s", file.name, 8, 16)
    forget = pb.SystemSharedMemoryUnregisterRequest
    await stub.SystemSharedMemoryUnregister(forget(name="s"))
    await stub.SystemSharedMemoryUnregister(forget(name="never there"))
    assert sorted((await stub.SystemSharedMemoryStatus(ask())).regions) == ["r"]
    code, text = await refusal(stub.SystemSharedMemoryStatus(ask(name="s")))
    assert code is grpc.StatusCode.NOT_FOUND
    assert "shared memory region: 's'" in text
    await stub.SystemSharedMemoryUnregister(forget())
    assert not (await stub.SystemSharedMemoryStatus(ask())).regions


async def test_a_name_is_registered_once(stub: Any, file: Path) -> None:
    code, text = await refusal(stub.SystemSharedMemoryRegister(registration(file)))
    assert code is grpc.StatusCode.ALREADY_EXISTS
    assert text == "shared memory region 'r' already in manager"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"key": "../etc/passwd"}, "expected a key of 1 to 255 characters without slashes"),
        ({"key": "/nobody-has-made-this"}, "Unable to open shared memory region: '/nobody"),
        ({"byte_size": 513}, "invalid args: expected at least 513 bytes"),
        ({"offset": (1 << 64) - 1}, "invalid args"),
        ({"byte_size": 0}, "invalid args: expected a name, and at least one byte"),
        ({"name": ""}, "invalid args: expected a name, and at least one byte"),
    ],
)
async def test_region_that_cannot_be_registered_is_refused_with_the_reason(
    sharing: Served, file: Path, change: dict[str, Any], words: str
) -> None:
    message = registration(file)
    for field, value in change.items():
        setattr(message, field, value)
    code, text = await refusal(sharing.stub.SystemSharedMemoryRegister(message))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith(f"failed to register shared memory region '{message.name}': ")
    assert words in text


def give(index: int, data: bytes) -> Callable[[pb.ModelInferRequest], None]:
    return lambda message: message.raw_input_contents.insert(index, data)


BAD: dict[str, tuple[Callable[[pb.ModelInferRequest], None], str]] = {
    "unknown region": (
        lambda m: place(m.inputs[1], 16, region="s"),
        "Unable to find shared memory region: 's'",
    ),
    "beyond the region": (
        lambda m: place(m.inputs[1], 16, 500),
        "Invalid offset + byte size for shared memory region: 'r'",
    ),
    "output beyond the region": (
        lambda m: place(m.outputs[0], 513),
        "Expected at most 512, got 513",
    ),
    "negative offset": (
        lambda m: place(m.inputs[1], 16, -4),
        "parameter 'shared_memory_offset': expected a whole number, at least 0, got -4",
    ),
    "size that is no number": (
        lambda m: (
            m.inputs[1]
            .parameters["shared_memory_byte_size"]
            .MergeFrom(pb.InferParameter(string_param="16"))
        ),
        "expected a whole number, at least 0, got '16'",
    ),
    "size of another shape": (
        lambda m: place(m.inputs[1], 8),
        "input byte size mismatch for input 'a' for model 'sums'. Expected 16, got 8",
    ),
    "contents too": (
        lambda m: m.inputs[1].contents.fp32_contents.extend([1, 2, 3, 4]),
        "contents field must not be specified",
    ),
    "raw contents too": (
        give(1, bytes(16)),
        "one for each input not in shared memory, but got 2",
    ),
    "text that is malformed": (
        lambda m: (m.raw_input_contents.pop(), place(m.inputs[0], 10, 65))[0],
        "expected",
    ),
    "two outputs in one place": (
        lambda m: (
            place(m.outputs[0], 16, ANSWER_AT),
            place(m.outputs.add(name="again"), 16, ANSWER_AT + 15),
        )[0],
        "outputs 'again' and 'sum' for model 'sums' overlap in shared memory",
    ),
}


@pytest.mark.parametrize("what", BAD)
async def test_bad_request_is_refused_with_what_was_expected(stub: Any, what: str) -> None:
    change, words = BAD[what]
    message = request()
    change(message)
    code, text = await refusal(stub.ModelInfer(message))
    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    assert words in text


async def test_inputs_of_one_request_are_bounded_whatever_its_file_claims(
    stub: Any, file: Path
) -> None:
    os.truncate(file, 1 << 40)  # takes no memory
    await stub.SystemSharedMemoryRegister(registration(file, "vast", byte_size=1 << 40))
    message = request()
    message.raw_input_contents.pop()
    place(message.inputs[0], 1 << 39, region="vast")
    code, text = await refusal(stub.ModelInfer(message))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"Expected at most 4096 bytes, got {1 << 39}" in text


async def test_text_counts_with_the_inputs_that_lie_in_regions(stub: Any, file: Path) -> None:
    os.truncate(file, 8_192)
    await stub.SystemSharedMemoryRegister(registration(file, "long", byte_size=8_192))

    def with_text(length: int) -> pb.ModelInferRequest:
        """Eight rows of numbers (64 bytes), and eight texts, all but the first one empty."""
        text = length.to_bytes(4, "little") + bytes(length) + 7 * bytes(4)
        file.write_bytes(text.ljust(8_192, b"\0"))
        message = request(rows=8)
        del message.raw_input_contents[:]
        place(message.inputs[0], len(text), region="long")
        return message

    fits = 4_096 - 64 - 8 * 4
    await stub.ModelInfer(with_text(fits))
    code, text = await refusal(stub.ModelInfer(with_text(fits + 1)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "Expected at most 4096 bytes, got 4097" in text


async def test_server_that_shares_says_so_and_one_that_does_not_names_the_flag(
    sharing: Served, served: Served, file: Path
) -> None:
    metadata = pb.ServerMetadataRequest()
    assert "system_shared_memory" in (await sharing.stub.ServerMetadata(metadata)).extensions
    assert "system_shared_memory" not in (await served.stub.ServerMetadata(metadata)).extensions
    stub = served.stub
    for call in (
        stub.SystemSharedMemoryRegister(registration(file)),
        stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest()),
        stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest()),
        stub.ModelInfer(request()),
    ):
        code, text = await refusal(call)
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert "--allow-client-shm" in text


async def test_memory_of_gpus_is_refused(sharing: Served) -> None:
    stub = sharing.stub
    for call in (
        stub.CudaSharedMemoryRegister(pb.CudaSharedMemoryRegisterRequest(name="r")),
        stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest()),
        stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest()),
    ):
        assert await refusal(call) == (
            grpc.StatusCode.UNIMPLEMENTED,
            "CUDA shared memory is not supported by this server",
        )
