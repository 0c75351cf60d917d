"""One ModelStreamInfer call: many requests over one stream, each answered on its own.

Triton's clients may rely on the answers of a stream coming in the order of its requests
(triton-inference-server/server issue 4572 names it as what streams are for), so they do, unless
the caller's metadata says that any order will do. What our own clients say beside the protocol is
described in `headrace.multiplexing`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from headrace.multiplexing import (
    BUNDLES_METADATA,
    CANCEL_PARAMETER,
    FINAL_PARAMETER,
    MAX_BUNDLE,
    MAX_BUNDLE_BYTES,
    UNORDERED_METADATA,
    bundle_of_answers,
    pack_error,
)
from headrace.protocol import grpc_service_pb2 as pb
from headrace_server.core.errors import Reason, ServingError
from headrace_server.engine.calls import Answer
from headrace_server.engine.serving import Served, Serving
from headrace_server.rpc.call import EOF
from headrace_server.transport.deadlines import remaining_s
from headrace_server.transport.failing import Context, refuse, unexpected
from headrace_server.transport.gate import Gate
from headrace_server.transport.reading import RequestReader, wants_timing
from headrace_server.transport.registration import Unreadable
from headrace_server.transport.status import STATUS, public_text, retry_after_s
from headrace_server.transport.unread import COUNTED_FROM, UnreadAnswers
from headrace_server.transport.writing import ResponseWriter, Wanted, add_timing


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What one stream may have with us: queued, running, or answered but not yet sent. What comes
    after it stays in the network, where the caller feels it; nothing is refused.

    Args:
        max_requests: twice what our own client puts on a stream, and enough for several of the
            largest batches.
        max_bytes: of their inputs, and of the answers that wait to be sent: a caller that does
            not read holds this much and what the requests already taken come to, no more. The
            inputs that our own client has in flight stay below it, so that what it cancels is
            read at once, unless answers wait: then once it has read enough of them.

    One message is always taken, whatever its size.
    """

    max_requests: int = 1_024
    max_bytes: int = 64 << 20


DEFAULT_LIMITS = StreamLimits()

GRPC_ERROR_METADATA = "triton_grpc_error"

CodecOf = Callable[[Served], tuple[RequestReader, ResponseWriter]]
CountInvalid = Callable[[str, str, ServingError], None]


@dataclass(slots=True, eq=False)
class _Entry:
    """One request of the stream; has its answer or its error once it is settled."""

    stream: InferStream
    id: str
    model: str = ""
    nbytes: int = 0
    unread_bytes: int = 0
    timing: bool = False
    wanted: Wanted = None
    writer: ResponseWriter | None = None
    deployment: Served | None = None
    ticket: Any = None
    answer: pb.ModelStreamInferResponse | None = None
    error: ServingError | None = None

    def answered(self, answer: Answer) -> None:
        """See `Waiter`."""
        self.stream.answered(self, answer)

    def refused(self, error: ServingError) -> None:
        """See `Waiter`."""
        self.stream.refused(self, error)

    def take_back(self) -> None:
        """Nobody waits for it any more."""
        assert self.deployment is not None
        self.deployment.cancel(self.ticket)

    @property
    def settled(self) -> bool:
        return self.answer is not None or self.error is not None


class InferStream:
    """Serves one stream: `run` returns when it is over, `end` asks it to finish.

    One task reads and submits, the caller of `run` writes; between them there is no task, and no
    closure, per request. Whoever vanishes takes its own requests back and no others.
    """

    def __init__(
        self,
        serving: Serving,
        codec_of: CodecOf,
        count_invalid: CountInvalid,
        limits: StreamLimits,
        context: Context,
        unread: UnreadAnswers,
        gate: Gate | None = None,
    ) -> None:
        self._serving = serving
        self._unread = unread
        self._peer: str = context.peer()
        self._gate = gate
        self._codec_of = codec_of
        self._count_invalid = count_invalid
        self._limits = limits
        self._context = context
        self._loop = asyncio.get_running_loop()
        metadata = dict(context.invocation_metadata() or ())
        self._order: deque[_Entry] | None = None
        if metadata.get(UNORDERED_METADATA) != "true":
            self._order = deque()
        self._bundles = metadata.get(BUNDLES_METADATA) == "true"
        self._error_ends = metadata.get(GRPC_ERROR_METADATA) == "true"
        left_s = remaining_s(context.time_remaining())
        self._deadline_s = None if left_s is None else self._loop.time() + left_s
        self._pending: dict[_Entry, None] = {}
        self._ready: deque[_Entry] = deque()
        self._held = self._held_bytes = 0
        self._unread_bytes = self._sending_bytes = 0
        self._reading: asyncio.Task[None] | None = None
        self._ending = False
        self._work: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Serve until the caller has sent its last request and got its last answer."""
        self._reading = asyncio.create_task(self._read())
        self._reading.add_done_callback(self._read_last)
        try:
            await self._write()
        finally:
            # Also where the caller is gone: whoever runs this is cancelled. The reader finds the
            # end of the call by itself, unless it waits for something else.
            if self._room is not None:
                self._room.cancel()
            # To take one back may end others: whoever is decided about meanwhile may be too late.
            pending, self._pending = self._pending, {}
            for entry in pending:
                entry.take_back()
            # They lead back here.
            self._ready.clear()
            if self._order is not None:
                self._order.clear()
            self._give_back(self._unread_bytes)
            # What broke it has a traceback that leads back here.
            self._reading = None

    def end(self) -> None:
        """Once what was admitted is answered, the stream ends as STOPPING."""
        self._ending = True
        self._wake_writer()

    # -- in ---------------------------------------------------------------------------------

    async def _read(self) -> None:
        read = self._context.read
        while (message := await read()) is not EOF:
            if isinstance(message, Unreadable):
                raise message.error()
            if message.model_name or not (self._bundles and message.raw_input_contents):
                self._take(message)
                await self._have_room()
            elif len(bundle := message.raw_input_contents) <= MAX_BUNDLE:
                # Without a pause where there is room: what came together is decided together.
                for data in bundle:
                    self._open(data)
                    await self._have_room()
            else:
                self._malformed(f"expected at most {MAX_BUNDLE} messages, got {len(bundle)}")
                await self._have_room()

    async def _have_room(self) -> None:
        limits = self._limits
        while self._held >= limits.max_requests or self._held_bytes >= limits.max_bytes:
            self._room = self._loop.create_future()
            await self._room

    def _take(self, message: pb.ModelInferRequest) -> None:
        if message.model_name:
            self._admit(message)
        else:
            self._obey(message)

    def _open(self, data: bytes) -> None:
        """One message out of a bundle; there are no bundles in bundles."""
        try:
            message = pb.ModelInferRequest.FromString(data)
        except DecodeError:
            self._malformed(f"expected a serialised ModelInferRequest, got {len(data)} other bytes")
        else:
            self._take(message)

    def _malformed(self, problem: str) -> None:
        error = ServingError(
            Reason.INVALID_PARAMETER, parameter="raw_input_contents", model="", problem=problem
        )
        self._fail(self._enter(""), error)

    def _admit(self, message: pb.ModelInferRequest) -> None:
        entry = self._enter(message.id)
        entry.model = message.model_name
        deadline_s = self._deadline_s
        left_s = None if deadline_s is None else max(0.0, deadline_s - self._loop.time())
        try:
            tenant = None if self._gate is None else self._gate.admit(message)
            if self._unread.scarce:
                self._unread.check(self._peer)
            deployment = self._serving.find(message.model_name, message.model_version)
            reader, entry.writer = self._codec_of(deployment)
            call = reader.read(message, left_s)
            entry.wanted = call.wanted
            if tenant is not None:
                call.tenant, call.weight = tenant.name, tenant.weight
            if message.parameters:
                entry.timing = wants_timing(message)
            entry.deployment = deployment
            entry.ticket = deployment.submit(call, entry)
        except ServingError as error:
            self._refuse(entry, error)
        except Exception as error:
            self._fail(entry, unexpected(error))
        else:
            self._hold(entry, call.nbytes)
            self._pending[entry] = None

    def _obey(self, message: pb.ModelInferRequest) -> None:
        """A message for no model: a cancellation, or a client that asks who is there."""
        if CANCEL_PARAMETER not in message.parameters:
            error = ServingError(Reason.UNKNOWN_MODEL, model="")
            self._fail(self._enter(message.id), error)
            return
        # Rare, and as cheap to look for as any message is to read.
        cancelled = message.parameters[CANCEL_PARAMETER].string_param
        for entry in [*self._pending]:
            # Those that share an id may end while the one before them is taken back.
            if entry.id == cancelled and entry in self._pending:
                del self._pending[entry]
                entry.take_back()
                self._fail(entry, ServingError(Reason.CANCELLED))

    def _enter(self, request_id: str) -> _Entry:
        entry = _Entry(self, request_id)
        self._held += 1
        if self._order is not None:
            self._order.append(entry)
        return entry

    def _hold(self, entry: _Entry, nbytes: int) -> None:
        self._held_bytes += nbytes - entry.nbytes
        entry.nbytes = nbytes

    def _give_back(self, nbytes: int) -> None:
        if nbytes:
            self._unread.release(self._peer, nbytes)
            self._unread_bytes -= nbytes

    # -- settled ----------------------------------------------------------------------------

    def answered(self, entry: _Entry, answer: Answer) -> None:
        """The model has answered this request."""
        self._pending.pop(entry, None)
        try:
            self._answer(entry, answer)
        except Exception as error:
            self._fail(entry, unexpected(error))

    def refused(self, entry: _Entry, error: ServingError) -> None:
        """This request ends without an answer."""
        self._pending.pop(entry, None)
        self._refuse(entry, error)

    def _answer(self, entry: _Entry, answer: Answer) -> None:
        assert entry.writer is not None
        nbytes = sum([len(output.data) for output in answer.outputs])
        if nbytes >= COUNTED_FROM:
            if not self._unread.hold(self._peer, nbytes):
                # Not raised: what is raised would keep the answer for as long as it waits itself.
                self._refuse(entry, self._unread.refusal(self._peer))
                return
            entry.unread_bytes = nbytes
            self._unread_bytes += nbytes
        message = pb.ModelStreamInferResponse()
        response = message.infer_response
        entry.writer.fill(response, answer, entry.id, entry.wanted)
        response.parameters[FINAL_PARAMETER].bool_param = True
        if entry.timing:
            add_timing(response, answer)
        self._hold(entry, nbytes)
        entry.answer = message
        self._settle(entry)

    def _refuse(self, entry: _Entry, error: ServingError) -> None:
        self._count_invalid(entry.model, "", error)
        self._fail(entry, error)

    def _fail(self, entry: _Entry, error: ServingError) -> None:
        # Its traceback would hold the frames that it has passed, and they the entry: a cycle.
        entry.error = error.with_traceback(None)
        self._settle(entry)

    def _settle(self, entry: _Entry) -> None:
        order = self._order
        if order is None:
            self._ready.append(entry)
        else:
            while order and order[0].settled:
                self._ready.append(order.popleft())
        if self._work is not None:
            self._wake_writer()

    def _read_last(self, reading: asyncio.Task[None]) -> None:
        _ = reading.cancelled() or reading.exception()  # asyncio logs what nobody looked at
        self._wake_writer()

    def _wake_writer(self) -> None:
        if self._work is not None and not self._work.done():
            self._work.set_result(None)

    # -- out --------------------------------------------------------------------------------

    async def _write(self) -> None:
        write = self._context.write
        ready = self._ready
        assert self._reading is not None
        while True:
            while ready:
                error = ready[0].error
                if error is not None and self._error_ends:
                    await refuse(self._context, error)
                await write(self._next())
                if self._sending_bytes:
                    self._give_back(self._sending_bytes)
                    self._sending_bytes = 0
                if self._room is not None and not self._room.done():
                    self._room.set_result(None)
            if (self._reading.done() or self._ending) and not self._held:
                break
            self._work = self._loop.create_future()
            await self._work
            self._work = None
        if self._ending:
            await refuse(self._context, ServingError(Reason.STOPPING))
        try:
            self._reading.result()  # what broke it breaks the call
        except ServingError as error:
            self._count_invalid("", "", error)
            await refuse(self._context, error)

    def _next(self) -> pb.ModelStreamInferResponse:
        """The answer whose turn it is, with those that are ready behind it if bundles are taken."""
        if not self._bundles or len(self._ready) == 1:
            return self._release()
        messages: list[bytes] = []
        nbytes = 0
        while self._ready and len(messages) < MAX_BUNDLE and nbytes < MAX_BUNDLE_BYTES:
            data = self._release().SerializeToString()
            nbytes += len(data)
            messages.append(data)
        return bundle_of_answers(messages)

    def _release(self) -> pb.ModelStreamInferResponse:
        entry = self._ready.popleft()
        self._held -= 1
        self._hold(entry, 0)
        self._sending_bytes += entry.unread_bytes
        return entry.answer or _error_message(entry)


def _error_message(entry: _Entry) -> pb.ModelStreamInferResponse:
    assert entry.error is not None
    code: int = STATUS[entry.error.reason].code.value[0]
    text = public_text(entry.error)
    reason = entry.error.reason.value
    return pack_error(entry.id, code, text, reason, retry_after_s(entry.error))
