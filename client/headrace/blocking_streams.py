"""`ModelInfer` for `Client` that takes a stream where it can. `aio_streams` is its twin.

Only the waiting is here: how calls and answers are matched, and which way a call goes, is in
`multiplexing`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from queue import SimpleQueue
from threading import TIMEOUT_MAX, Lock, Thread, Timer
from typing import Any, TypeAlias

import grpc

from headrace.errors import InvalidResponse, ServerError, error_of_code, server_error
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

__all__ = ["BlockingStreams"]

_Unary: TypeAlias = Any  # grpc's types do not say what its multicallables take
_Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]


class BlockingStreams:
    """Called like the stub's `ModelInfer`; fails like it too, or with a `ServerError`."""

    def __init__(
        self, channel: grpc.Channel, unary: _Unary, metadata: _Metadata, mode: Multiplex
    ) -> None:
        self._unary = unary
        self._method: Any = channel.stream_stream(
            METHOD, response_deserializer=pb.ModelStreamInferResponse.FromString
        )
        self._metadata = (*metadata, *STREAM_METADATA)
        self._lock = Lock()
        self._pool: StreamPool[_BlockingStream] = StreamPool(mode)
        self._closed = False

    @property
    def open(self) -> int:
        """Streams that are open."""
        return len(self._pool.streams)

    def __call__(
        self, request: pb.ModelInferRequest, *, timeout: float | None, metadata: _Metadata
    ) -> pb.ModelInferResponse:
        """Answer one request, over a stream or as a unary call."""
        pool, lock = self._pool, self._lock
        with lock:
            pool.in_flight += 1
            opens = not self._closed and pool.should_open()
            stream = pool.choose(request)
        try:
            if opens:
                try:
                    Thread(target=self._serve, name="headrace-stream", daemon=True).start()
                except RuntimeError:  # no more threads; unary calls do without
                    with lock:
                        pool.failed()
            if stream is not None:
                deadline_s = None if timeout is None else time.monotonic() + timeout
                try:
                    return stream.infer(request, timeout)
                except NotForStreams as told:
                    if told.answers_in_pieces:
                        with lock:
                            pool.answered_in_pieces(request)
                timeout = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            response: pb.ModelInferResponse = self._unary(
                request, timeout=timeout, metadata=metadata
            )
            with lock:
                pool.answered_alone(request)
            return response
        finally:
            with lock:
                pool.in_flight -= 1

    def close(self) -> None:
        """From now on streams that end do so because the connection is closed."""
        self._closed = True

    def _serve(self) -> None:
        """Open a stream and bring its answers, until it ends: the life of one thread."""
        pool = self._pool
        stream = _BlockingStream()
        opened = False
        rpc = self._method(stream.messages(), metadata=self._metadata)
        why: Exception = ENDED
        try:
            stream.extended = self._probe(rpc)
            if not pool.takes(extended=stream.extended):
                return
            with self._lock:
                pool.opened(stream)
            opened = True
            for message in rpc:
                stream.answer(message)
        except grpc.RpcError as error:
            why = server_error(error)
        except InvalidResponse as error:
            why = error
        finally:
            rpc.cancel()
            with self._lock:
                if opened:
                    pool.ended(stream)
                else:
                    pool.failed()
            stream.end(_CLOSED if self._closed else why)

    def _probe(self, rpc: Any) -> bool:
        overdue = Timer(OPENING_TIMEOUT_S, rpc.cancel)
        overdue.daemon = True
        overdue.start()
        try:
            return speaks_extension(next(rpc, None))
        finally:
            overdue.cancel()


class _Wait:
    """What a calling thread waits on: `done` is free once there is an outcome."""

    __slots__ = ("done", "outcome")

    def __init__(self) -> None:
        self.done = Lock()
        self.done.acquire()
        self.outcome: pb.ModelStreamInferResponse | ServerError | None = None


class _BlockingStream:
    """One open stream: what is to be sent, and the calls that wait. Safe between threads."""

    def __init__(self) -> None:
        self.extended = False
        self._calls: StreamCalls[_Wait] = StreamCalls()
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._over: ServerError | Exception | None = None

    @property
    def in_flight(self) -> int:
        return len(self._calls)

    def infer(
        self, request: pb.ModelInferRequest, timeout_s: float | None
    ) -> pb.ModelInferResponse:
        wait = _Wait()
        call, data = self._calls.open(request, wait, timeout_s if self.extended else None)
        if self._over is not None:  # asked after the call is there: `end` finds it, or we do
            self._calls.forget(call)
            raise _ended(self._over, call)
        self._outbox.put(data)
        try:
            done = wait.done.acquire(
                timeout=-1 if timeout_s is None else min(timeout_s, TIMEOUT_MAX)
            )
        except BaseException:  # Ctrl-C
            if self.extended:
                self._outbox.put(cancellation(call))
            raise
        if not done:
            raise deadline_exceeded(call.request_id)
        if isinstance(wait.outcome, pb.ModelStreamInferResponse):
            return unpack(wait.outcome, call.request_id)
        assert wait.outcome is not None
        raise wait.outcome

    def messages(self) -> Iterator[bytes]:
        """What is to be sent, as it comes, until the end."""
        yield PROBE
        while (data := self._outbox.get()) is not None:
            messages, nbytes = [data], len(data)
            most = MAX_BUNDLE if self.extended else 1
            while len(messages) < most and nbytes < MAX_BUNDLE_BYTES and not self._outbox.empty():
                # Nobody else takes from it, so what is there stays there.
                if (data := self._outbox.get()) is None:
                    return
                messages.append(data)
                nbytes += len(data)
            yield bundle_of_requests(messages)

    def answer(self, message: pb.ModelStreamInferResponse) -> None:
        """Hand an answer to the call that waits for it. Raises `InvalidResponse` if none does."""
        for answer in unbundle(message):
            _settle(self._calls.match(answer).wait, answer)

    def end(self, why: Exception) -> None:
        """Nothing more comes."""
        self._over = why
        self._outbox.put(None)
        for call in self._calls.drain():
            _settle(call.wait, _ended(why, call))


_CLOSED = error_of_code(grpc.StatusCode.CANCELLED, "Channel closed!")


def _ended(why: Exception, call: StreamCall[_Wait]) -> ServerError:
    if why is _CLOSED:
        return error_of_code(_CLOSED.code, _CLOSED.message, request_id=call.request_id)
    return broken(why, call.request_id)


def _settle(wait: _Wait, outcome: pb.ModelStreamInferResponse | ServerError) -> None:
    if wait.outcome is None:  # the first message of several is enough
        wait.outcome = outcome
        wait.done.release()
