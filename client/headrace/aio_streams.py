"""`ModelInfer` for `AsyncClient` that takes a stream where it can. `blocking_streams` is its twin.

Only the waiting is here: how calls and answers are matched, and which way a call goes, is in
`multiplexing`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc

from headrace.errors import InvalidResponse, server_error
from headrace.multiplexing import (
    ENDED,
    MAX_BUNDLE,
    MAX_BUNDLE_BYTES,
    METHOD,
    OPENING_TIMEOUT_S,
    PROBE,
    STREAM_METADATA,
    Multiplex,
    NotForStreams,
    StreamCall,
    StreamCalls,
    StreamPool,
    broken,
    bundle_of_requests,
    cancellation,
    deadline_exceeded,
    speaks_extension,
    unbundle,
    unpack,
)
from headrace.protocol import grpc_service_pb2 as pb

__all__ = ["AsyncStreams"]

_BROKEN = (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError)
"""What reading and writing raise once a stream is over."""

_Unary: TypeAlias = Any  # grpc's types do not say what its multicallables take
_Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]
_Answered: TypeAlias = "asyncio.Future[pb.ModelStreamInferResponse]"


class AsyncStreams:
    """Called like the stub's `ModelInfer`; fails like it too, or with a `ServerError`."""

    def __init__(
        self, channel: grpc.aio.Channel, unary: _Unary, metadata: _Metadata, mode: Multiplex
    ) -> None:
        self._unary = unary
        self._method: Any = channel.stream_stream(
            METHOD, response_deserializer=pb.ModelStreamInferResponse.FromString
        )
        self._metadata = (*metadata, *STREAM_METADATA)
        self._pool: StreamPool[_AsyncStream] = StreamPool(mode)
        self._opening: asyncio.Task[None] | None = None

    @property
    def open(self) -> int:
        """Streams that are open."""
        return len(self._pool.streams)

    async def __call__(
        self, request: pb.ModelInferRequest, *, timeout: float | None, metadata: _Metadata
    ) -> pb.ModelInferResponse:
        """Answer one request, over a stream or as a unary call."""
        pool = self._pool
        pool.in_flight += 1
        try:
            if pool.should_open():
                self._opening = asyncio.create_task(self._open())
            stream = pool.choose(request)
            if stream is not None:
                loop = asyncio.get_running_loop()
                deadline_s = None if timeout is None else loop.time() + timeout
                try:
                    return await stream.infer(request, timeout)
                except NotForStreams as told:
                    if told.answers_in_pieces:
                        pool.answered_in_pieces(request)
                timeout = None if deadline_s is None else max(0.0, deadline_s - loop.time())
            response: pb.ModelInferResponse = await self._unary(
                request, timeout=timeout, metadata=metadata
            )
            pool.answered_alone(request)
            return response
        finally:
            pool.in_flight -= 1

    async def close(self) -> None:
        """Cancel what waits for answers, and end every stream."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        for stream in [*self._pool.streams]:
            await stream.close()

    async def _open(self) -> None:
        pool = self._pool
        rpc = self._method(metadata=self._metadata)
        try:
            async with asyncio.timeout(OPENING_TIMEOUT_S):
                await rpc.write(PROBE)
                extended = speaks_extension(await rpc.read())
        except (*_BROKEN, TimeoutError, InvalidResponse):
            rpc.cancel()
            pool.failed()
            return
        if pool.takes(extended=extended):
            pool.opened(_AsyncStream(rpc, pool.ended, extended=extended))
        else:
            rpc.cancel()
            pool.failed()


class _AsyncStream:
    """One open stream: a task that writes, a task that reads, and the calls between them."""

    def __init__(self, rpc: Any, ended: Callable[[_AsyncStream], None], *, extended: bool) -> None:
        self._rpc = rpc
        self._ended = ended
        self._extended = extended
        self._loop = asyncio.get_running_loop()
        self._calls: StreamCalls[_Answered] = StreamCalls()
        self._outbox: deque[tuple[StreamCall[_Answered] | None, bytes]] = deque()
        self._work: asyncio.Future[None] | None = None
        self._writing = asyncio.create_task(self._write())
        self._reading = asyncio.create_task(self._read())

    @property
    def in_flight(self) -> int:
        return len(self._calls)

    async def infer(
        self, request: pb.ModelInferRequest, timeout_s: float | None
    ) -> pb.ModelInferResponse:
        answered: _Answered = self._loop.create_future()
        call, data = self._calls.open(request, answered, timeout_s if self._extended else None)
        self._send(call, data)
        timer = None
        if timeout_s is not None:
            timer = self._loop.call_later(timeout_s, _expire, call)
        try:
            message = await answered
        except asyncio.CancelledError:
            # Answers keep coming for what was given up; only this server can be told.
            if self._extended and not self._reading.done():
                self._send(None, cancellation(call))
            raise
        finally:
            if timer is not None:
                timer.cancel()
        return unpack(message, call.request_id)

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])

    def _send(self, call: StreamCall[_Answered] | None, data: bytes) -> None:
        self._outbox.append((call, data))
        if self._work is not None and not self._work.done():
            self._work.set_result(None)

    async def _write(self) -> None:
        outbox = self._outbox
        try:
            while True:
                while outbox:
                    if messages := self._take():
                        await self._rpc.write(bundle_of_requests(messages))
                self._work = self._loop.create_future()
                await self._work
        except _BROKEN:
            pass  # the reader learns why

    def _take(self) -> list[bytes]:
        """What goes out next: one message, or what is ready if the server takes bundles."""
        messages: list[bytes] = []
        outbox, nbytes = self._outbox, 0
        most = MAX_BUNDLE if self._extended else 1
        while outbox and len(messages) < most and nbytes < MAX_BUNDLE_BYTES:
            call, data = outbox.popleft()
            if call is not None and call.wait.done():
                self._calls.forget(call)
            else:
                messages.append(data)
                nbytes += len(data)
        return messages

    async def _read(self) -> None:
        why: Exception = ENDED
        try:
            while True:
                message = await self._rpc.read()
                if not isinstance(message, pb.ModelStreamInferResponse):
                    break
                for answer in unbundle(message):
                    answered = self._calls.match(answer).wait
                    if not answered.done():
                        answered.set_result(answer)
        except grpc.aio.AioRpcError as error:
            why = server_error(error)
        except (*_BROKEN, InvalidResponse) as error:
            why = error
        except asyncio.CancelledError:
            for call in self._calls.drain():
                call.wait.cancel()
            raise
        finally:
            self._rpc.cancel()
            self._writing.cancel()
            self._ended(self)
            for call in self._calls.drain():
                if not call.wait.done():
                    call.wait.set_exception(broken(why, call.request_id))


def _expire(call: StreamCall[_Answered]) -> None:
    if not call.wait.done():
        call.wait.set_exception(deadline_exceeded(call.request_id))
