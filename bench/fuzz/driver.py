"""Sends cases to a server, many at once, and listens meanwhile whether the others are served."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np

from bench.checked_models import FUZZED, differences
from bench.fuzz.cases import Case, Socket, Stream, Unary
from bench.fuzz.judging import StreamJudge, judge_answer, judge_code, parsed
from bench.fuzz.mutations import INFER, PREFIXES, SERVICE
from headrace import AsyncClient, ServerError
from headrace.errors import server_error
from headrace.protocol import grpc_service_pb2 as pb
from headrace.retry import RetryPolicy

HANG_S = 30.0
"""Beyond this and its own deadline a case hangs."""

WRITE_FAILED = "Internal error from Core"
"""What grpc.aio's client says, in the place of the server's status, when a stream was ended while
it wrote to it."""

CANARIES = 4
CANARY_PAUSE_S = 0.01
CANARY_ID = "canary"


class Driver:
    """One server's callers. `problems` says what went wrong, `ends` counts how cases ended."""

    def __init__(self, address: str) -> None:
        self.problems: list[str] = []
        self.ends: Counter[str] = Counter()
        self.canary_answers = 0
        self._address = address
        self._channel = grpc.aio.insecure_channel(address)
        # Of its own: what is refused on one connection must not disturb the others.
        self._canaries: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Let the canaries sing."""
        self._canaries = [asyncio.create_task(self._sing(number)) for number in range(CANARIES)]

    async def stop(self) -> None:
        """Close everything."""
        for task in self._canaries:
            task.cancel()
        await asyncio.gather(*self._canaries, return_exceptions=True)
        await self._channel.close()

    async def send(self, cases: Sequence[Case]) -> list[str]:
        """Send these together; returns what went wrong with any of them, or with a canary."""
        already = len(self.problems)
        await asyncio.gather(*(self._send(case) for case in cases))
        return self.problems[already:]

    async def _send(self, case: Case) -> None:
        timeout_s = getattr(case, "timeout_s", None) or 0.0
        try:
            async with asyncio.timeout(HANG_S + min(timeout_s, HANG_S)):
                match case:
                    case Unary():
                        await self._unary(case)
                    case Stream():
                        await self._stream(case)
                    case Socket():
                        await self._socket(case)
        except TimeoutError:
            self._problem(case, f"no end of it within {HANG_S:g} s")

    # -- calls ------------------------------------------------------------------------------

    async def _unary(self, case: Unary) -> None:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        method = self._channel.unary_unary(case.method)
        call = method(case.body, timeout=case.timeout_s, metadata=case.metadata)
        if case.cancel_after_s is not None:
            asyncio.get_running_loop().call_later(case.cancel_after_s, call.cancel)
        try:
            answer = await call
        except asyncio.CancelledError:
            if case.cancel_after_s is None:  # it is us who are cancelled
                call.cancel()
                raise
            self.ends["cancelled"] += 1
        except grpc.aio.AioRpcError as failure:
            self._failed(case, failure, own_deadline=case.timeout_s is not None)
        else:
            self.ends["ok"] += 1
            if case.method == INFER:
                response = pb.ModelInferResponse.FromString(answer)
                self._problem(case, judge_answer(parsed(case.body), response))

    async def _stream(self, case: Stream) -> None:
        judge = StreamJudge(case)
        call: Any = self._channel.stream_stream(f"{SERVICE}ModelStreamInfer")(
            timeout=case.timeout_s, metadata=case.metadata
        )
        writing = asyncio.create_task(_write(call, case.bodies))
        try:
            while (data := await call.read()) is not grpc.aio.EOF:
                for problem in judge.message(pb.ModelStreamInferResponse.FromString(data)):
                    self._problem(case, problem)
                if case.cancel_after is not None and judge.answers >= case.cancel_after:
                    call.cancel()
                    self.ends["stream cancelled"] += 1
                    return
            if await call.code() is grpc.StatusCode.OK:
                self.ends["stream ok"] += 1
                for problem in judge.complete():
                    self._problem(case, problem)
                return
            raise grpc.aio.AioRpcError(
                await call.code(),
                await call.initial_metadata(),
                await call.trailing_metadata(),
                await call.details(),
            )
        except grpc.aio.AioRpcError as failure:
            self._failed(case, failure, own_deadline=case.timeout_s is not None)
        finally:
            writing.cancel()
            call.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    def _failed(self, case: Case, failure: grpc.aio.AioRpcError, *, own_deadline: bool) -> None:
        error = server_error(failure)
        if error.message == WRITE_FAILED:
            self.ends["stream ended while it was written to"] += 1
            return
        self.ends[error.reason or error.code.name] += 1
        self._problem(case, judge_code(error))
        if error.reason is None and error.code is grpc.StatusCode.UNAVAILABLE:
            self._problem(case, f"the connection was lost: {error.message}")
        late = error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        if error.reason is None and late and not own_deadline:
            self._problem(case, "a deadline that nobody set was exceeded")

    # -- connections ------------------------------------------------------------------------

    async def _socket(self, case: Socket) -> None:
        host, _, port = self._address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(case.data)
            await writer.drain()
            if case.abrupt:
                writer.transport.abort()
                self.ends["connection broken off"] += 1
                return
            writer.write_eof()
            said = await reader.read()
            for prefix in (CANARY_ID, *PREFIXES):
                if prefix.encode() in said and prefix.encode() not in case.data:
                    self._problem(case, f"an answer to another connection's {prefix!r}")
            self.ends["connection closed"] += 1
        except OSError:
            self.ends["connection reset"] += 1
        finally:
            writer.close()

    # -- the others -------------------------------------------------------------------------

    async def _sing(self, number: int) -> None:
        random = np.random.default_rng(number)
        multiplex = number % 2 == 1
        once = RetryPolicy(max_attempts=1)
        async with AsyncClient(self._address, multiplex=multiplex, retry=once) as client:
            while True:
                for model in FUZZED:
                    inputs = model.draw(random)
                    request_id = f"{CANARY_ID}-{number}-{self.canary_answers}"
                    try:
                        result = await client.infer(
                            model.name, inputs, request_id=request_id, timeout=HANG_S
                        )
                    except ServerError as error:
                        self.problems.append(f"a canary of '{model.name}' failed: {error}")
                        continue
                    problem = differences(result.outputs, model.answer(inputs))
                    if problem or result.request_id != request_id:
                        self.problems.append(f"a canary of '{model.name}': {problem or 'the id'}")
                    self.canary_answers += 1
                    await asyncio.sleep(CANARY_PAUSE_S)

    def _problem(self, case: Case, problem: str) -> None:
        if problem:
            self.problems.append(f"{type(case).__name__}: {problem}")


async def _write(call: Any, bodies: Sequence[bytes]) -> None:
    for body in bodies:
        await call.write(body)
    await call.done_writing()
