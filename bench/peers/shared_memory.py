"""One request whose tensors lie in system shared memory, as the protocol has it."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import numpy as np

from bench.peers.workloads import TOLERANCE, Workload, WrongAnswerError
from headrace.protocol import grpc_service_pb2 as pb
from headrace.protocol.grpc_service_pb2_grpc import GRPCInferenceServiceStub

DIRECTORY = Path("/dev/shm")


class SharedRequest(AbstractContextManager["SharedRequest"]):
    """The first request of a workload, its input and output in two regions that are registered
    while this is entered. Requests in flight share both: they write the same answer."""

    def __init__(self, address: str, workload: Workload) -> None:
        self._workload = workload
        self._input, self._expected = workload.inputs[0], workload.expected[0]
        self._channel = grpc.insecure_channel(address)
        self._stub = GRPCInferenceServiceStub(self._channel)
        self._files: list[Path] = []
        self.body = b""

    def __enter__(self) -> Self:
        try:
            request = pb.ModelInferRequest(model_name=self._workload.name)
            given = request.inputs.add(
                name=self._workload.given, datatype="FP32", shape=self._input.shape
            )
            self._share(given, "input", self._input.tobytes())
            self._share(request.outputs.add(name="output"), "output", bytes(self._expected.nbytes))
            self.body = request.SerializeToString()
            self._stub.ModelInfer(request)
            self.check()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest())
        self._end()

    def check(self) -> None:
        """Look whether the right answer is in its region, and wipe it.

        Raises:
            WrongAnswerError: it is not.
        """
        file = self._files[1]
        got = np.frombuffer(file.read_bytes(), np.float32)
        if not np.allclose(got, self._expected.ravel(), atol=TOLERANCE):
            raise WrongAnswerError(f"expected {self._expected} in shared memory, got {got}")
        with file.open("r+b") as region:
            region.write(bytes(got.nbytes))

    def _share(self, tensor: object, name: str, content: bytes) -> None:
        file = DIRECTORY / f"peers-{os.getpid()}-{name}"
        file.write_bytes(content)
        self._files.append(file)
        self._stub.SystemSharedMemoryRegister(
            pb.SystemSharedMemoryRegisterRequest(
                name=name, key=f"/{file.name}", byte_size=len(content)
            )
        )
        parameters = tensor.parameters  # type: ignore[attr-defined]
        parameters["shared_memory_region"].string_param = name
        parameters["shared_memory_byte_size"].int64_param = len(content)

    def _end(self) -> None:
        self._channel.close()
        for file in self._files:
            file.unlink(missing_ok=True)
