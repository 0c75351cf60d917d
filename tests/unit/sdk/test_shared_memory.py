"""Arrays in shared memory, and the requests and answers that refer to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.errors import InvalidInput, InvalidResponse
from headrace.messages import arrays_to_send, infer_request, infer_result
from headrace.protocol import grpc_service_pb2 as pb
from headrace.shared_memory import SharedMemory
from shared_memory import DIRECTORY

pytestmark = pytest.mark.skipif(not DIRECTORY.is_dir(), reason="this system has no /dev/shm")


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    memory = SharedMemory(1_000)
    yield memory
    memory.unlink()
    memory.close()


def sent(memory: SharedMemory, array: np.ndarray) -> pb.ModelInferRequest:
    return infer_request("m", arrays_to_send("m", {"x": array}, None), memories=[memory])


def names_of_this_process() -> list[str]:
    return [name for name in os.listdir(DIRECTORY) if name.startswith(f"headrace-{os.getpid()}-")]


def place(tensor: object) -> tuple[str, int, int]:
    parameters = tensor.parameters  # type: ignore[attr-defined]
    return (
        parameters["shared_memory_region"].string_param,
        parameters["shared_memory_offset"].int64_param,
        parameters["shared_memory_byte_size"].int64_param,
    )


def test_what_is_written_to_an_array_is_in_the_file_that_the_server_opens(
    memory: SharedMemory,
) -> None:
    first, second = memory.empty(3, np.uint8), memory.empty((2, 2), np.int32)
    first[:], second[:] = 7, [[1, 2], [3, 4]]
    registered = memory.registration()
    file = DIRECTORY / registered.key.removeprefix("/")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.stat().st_size == registered.byte_size == 1_000
    assert file.read_bytes()[:3] == b"\x07\x07\x07"
    assert file.read_bytes()[64:80] == second.tobytes()


def test_memory_outlives_its_name(memory: SharedMemory) -> None:
    array = memory.empty(4)
    memory.unlink()
    assert not (DIRECTORY / memory.name).exists()
    array[:] = 1
    memory.unlink()  # once more is fine


def test_an_array_outlives_its_memory(memory: SharedMemory) -> None:
    array = memory.empty(4)
    memory.close()
    array[:] = 2
    assert array.sum() == 8
    with pytest.raises(InvalidInput, match="before the end of its memory's with block"):
        memory.empty(1)


@pytest.mark.parametrize("shape", [1_001, (1_000, 2), (2**40,)])
def test_more_than_is_left_is_refused_with_what_is(
    memory: SharedMemory, shape: int | tuple[int, ...]
) -> None:
    memory.empty(64, np.uint8)
    with pytest.raises(InvalidInput, match="at most 936 bytes, which are left of 1000"):
        memory.empty(shape, np.uint8)


def test_whole_numbers_of_numpy_are_shapes_and_sizes() -> None:
    memory = SharedMemory(np.int64(100))  # type: ignore[arg-type]
    memory.unlink()
    assert memory.registration().byte_size == 100
    assert memory.empty(np.int64(3)).shape == (3,)  # type: ignore[arg-type]
    assert memory.empty((np.int64(2), 1)).shape == (2, 1)


@pytest.mark.parametrize("shape", [-1, (2, -1), 1.5, (1.5,), "ab", 2**64, (0, 2**62, 4), [1] * 99])
def test_a_shape_that_is_none_is_refused(memory: SharedMemory, shape: Any) -> None:
    with pytest.raises(InvalidInput, match="expected a shape and a dtype that numpy has, got"):
        memory.empty(shape)


@pytest.mark.parametrize("dtype", [object, [("number", "i4"), ("any", object)]])
def test_pointers_are_not_for_a_server_to_write(memory: SharedMemory, dtype: Any) -> None:
    with pytest.raises(InvalidInput, match=r"such as np\.uint8 for BYTES, got"):
        memory.empty(2, dtype)


def test_a_dtype_that_is_none_is_refused(memory: SharedMemory) -> None:
    with pytest.raises(InvalidInput, match="got 1 and 'float99'"):
        memory.empty(1, "float99")


@pytest.mark.parametrize("nbytes", [0, -1, 1 << 62, 1 << 64, 1.5, "1", None])
def test_memory_that_there_is_not_is_refused_and_leaves_no_name(nbytes: Any) -> None:
    with pytest.raises(InvalidInput, match="expected"):
        SharedMemory(nbytes)
    assert not names_of_this_process()


def test_ctrl_c_while_memory_is_taken_leaves_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        assert names_of_this_process()
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "posix_fallocate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SharedMemory(100)
    assert not names_of_this_process()


def test_a_system_without_such_memory_is_told_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("headrace.shared_memory._DIRECTORY", str(tmp_path / "none"))
    with pytest.raises(InvalidInput, match="which this system lacks"):
        SharedMemory(1)


@pytest.mark.parametrize("dtype", [np.float32, np.int8, bool, np.float16])
def test_an_array_in_the_memory_is_named_and_not_sent(memory: SharedMemory, dtype: type) -> None:
    memory.empty(1)
    array = memory.empty((3, 4), dtype)
    request = sent(memory, array)
    assert not request.raw_input_contents
    assert list(request.inputs[0].shape) == [3, 4]
    assert place(request.inputs[0]) == (memory.name, 64, array.nbytes)


def test_whole_rows_of_an_array_are_in_the_memory_too(memory: SharedMemory) -> None:
    array = memory.empty((4, 8))
    assert place(sent(memory, array[1:3]).inputs[0]) == (memory.name, 32, 64)


def test_arrays_that_do_not_lie_there_as_they_are_sent_are_sent(memory: SharedMemory) -> None:
    rows = memory.empty((4, 4))
    rows[:] = np.arange(16).reshape(4, 4)
    big_endian = memory.empty(2, ">i4")
    big_endian[:] = 5
    text = memory.empty(2, "S3")
    text[:] = b"abc"
    for array, raw in (
        (rows.T, np.ascontiguousarray(rows.T).tobytes()),
        (rows[:, :2], np.ascontiguousarray(rows[:, :2]).tobytes()),
        (np.zeros(2, np.float32), bytes(8)),
        (big_endian, np.full(2, 5, "<i4").tobytes()),
        (text, b"\x03\x00\x00\x00abc" * 2),
    ):
        request = sent(memory, array)
        assert list(request.raw_input_contents) == [raw]
        assert not request.inputs[0].parameters


def test_outputs_are_asked_for_where_they_are_to_be_written(memory: SharedMemory) -> None:
    y = memory.empty(8)
    arrays = arrays_to_send("m", {"x": np.zeros(1)}, None)
    only = infer_request("m", arrays, into={"y": y}, memories=[memory])
    assert [output.name for output in only.outputs] == ["y"]
    assert place(only.outputs[0]) == (memory.name, 0, 32)
    both = infer_request("m", arrays, outputs=["z", "y"], into={"y": y}, memories=[memory])
    assert [output.name for output in both.outputs] == ["z", "y"]
    assert not both.outputs[0].parameters


def test_an_output_can_only_be_written_into_the_memory(memory: SharedMemory) -> None:
    arrays = arrays_to_send("m", {"x": np.zeros(1)}, None)
    for array in (np.zeros(4), memory.empty((4, 4))[:, :2]):
        with pytest.raises(InvalidInput, match="output 'y': expected an array made by"):
            infer_request("m", arrays, into={"y": array}, memories=[memory])


def test_an_answer_is_a_view_of_what_was_written(memory: SharedMemory) -> None:
    y, text = memory.empty((4, 2)), memory.empty(64, np.uint8)
    y[:2], text[:7] = [[1, 2], [3, 4]], np.frombuffer(b"\x03\x00\x00\x00abc", np.uint8)
    response = pb.ModelInferResponse(model_name="m")
    response.outputs.add(name="y", datatype="FP32", shape=[2, 2])
    response.outputs.add(name="z", datatype="INT8", shape=[1])
    written = response.outputs.add(name="text", datatype="BYTES", shape=[1])
    written.parameters["shared_memory_byte_size"].int64_param = 7
    response.raw_output_contents.extend([b"", b"\x09", b""])
    result = infer_result(response, {"y": y, "text": text})
    assert result["y"].tolist() == [[1, 2], [3, 4]]
    assert np.shares_memory(result["y"], y)
    assert result["z"].tolist() == [9]
    assert result["text"].tolist() == [b"abc"]


def test_an_answer_of_no_known_datatype_is_refused_wherever_it_was_written(
    memory: SharedMemory,
) -> None:
    response = pb.ModelInferResponse()
    response.outputs.add(name="y", datatype="FP8", shape=[1])
    with pytest.raises(InvalidResponse, match=r"output 'y': expected one of .*, got 'FP8'"):
        infer_result(response, {"y": memory.empty(1)})
