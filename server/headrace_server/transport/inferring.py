"""Inference over gRPC, one request per call or many on a stream, whoever it is that answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from headrace.protocol import grpc_service_pb2_grpc as rpc
from headrace_server.core.errors import ServingError
from headrace_server.engine.calls import Answer
from headrace_server.engine.serving import Served, Serving, count_invalid
from headrace_server.rpc.call import Call
from headrace_server.transport.deadlines import remaining_s
from headrace_server.transport.failing import Context, end_with, unexpected
from headrace_server.transport.gate import Gate
from headrace_server.transport.infer_stream import DEFAULT_LIMITS, InferStream, StreamLimits
from headrace_server.transport.reading import RequestReader, wants_timing
from headrace_server.transport.regions import SpanFinder, refuse_spans
from headrace_server.transport.registration import Unreadable, begins, takes_unreadable
from headrace_server.transport.unread import COUNTED_FROM, UnreadAnswers
from headrace_server.transport.writing import ResponseWriter, Wanted, add_timing


@dataclass(slots=True, eq=False)
class _Waiting:
    """A unary call that waits for its answer: what there is of it in the place of a task."""

    service: InferringService
    call: Call
    model: str
    version: str
    id: str
    wanted: Wanted
    timing: bool
    writer: ResponseWriter
    deployment: Served
    ticket: Any = None

    def answered(self, answer: Answer) -> None:
        """See `Waiter`."""
        service = self.service
        try:
            service.answer(self, answer)
        except ServingError as error:
            self.refused(error)
        except Exception as error:
            end_with(self.call, unexpected(error))

    def refused(self, error: ServingError) -> None:
        """See `Waiter`."""
        self.service.refuse(self.call, self.model, self.version, error)

    def over(self) -> None:
        """The call has ended; if not by its answer, then because its caller is gone."""
        self.deployment.cancel(self.ticket)


class InferringService(rpc.GRPCInferenceServiceServicer):
    """`ModelInfer` and `ModelStreamInfer` of `inference.GRPCInferenceService`.

    Args:
        serving: finds who answers.
        find_span: finds what tensors name in place of their contents; by default that is refused.
        max_span_bytes: of one request's inputs that do not come with its message.
    """

    def __init__(
        self,
        serving: Serving,
        find_span: SpanFinder = refuse_spans,
        max_span_bytes: int = 0,
        stream_limits: StreamLimits = DEFAULT_LIMITS,
        gate: Gate | None = None,
        unread: UnreadAnswers | None = None,
    ) -> None:
        self._serving = serving
        self._finder = find_span
        self._max_span_bytes = max_span_bytes
        self._stream_limits = stream_limits
        self._gate = gate
        self._unread = unread or UnreadAnswers()
        self._codecs: WeakKeyDictionary[Served, tuple[RequestReader, ResponseWriter]] = (
            WeakKeyDictionary()
        )
        self._streams: WeakSet[InferStream] = WeakSet()

    @begins
    def ModelInfer(self, request: Any, context: Context) -> None:
        """Run one request, in a batch with others."""
        call: Call = context
        try:
            if isinstance(request, Unreadable):
                raise request.error()
            tenant = None if self._gate is None else self._gate.admit(request)
            if self._unread.scarce:
                self._unread.check(call.peer())
            deployment = self._serving.find(request.model_name, request.model_version)
            codec = self._codecs.get(deployment)
            if codec is None:
                codec = self._codec(deployment)
            reader, writer = codec
            asked = reader.read(request, remaining_s(call.time_remaining()))
            if tenant is not None:
                asked.tenant, asked.weight = tenant.name, tenant.weight
            waiting = _Waiting(
                self,
                call,
                request.model_name,
                request.model_version,
                request.id,
                asked.wanted,
                bool(request.parameters) and wants_timing(request),
                writer,
                deployment,
            )
            waiting.ticket = deployment.submit(asked, waiting)
        except ServingError as error:
            self.refuse(call, request.model_name, request.model_version, error)
        except Exception as error:
            end_with(call, unexpected(error))
        else:
            call.add_done_callback(waiting.over)

    # A coroutine that reads and writes by itself; the stub's types know only generators.
    @takes_unreadable
    async def ModelStreamInfer(self, requests: object, context: Context) -> None:
        """Run many requests, each on its own, and answer them over the same stream."""
        stream = InferStream(
            self._serving,
            self._codec_of,
            self._count_invalid,
            self._stream_limits,
            context,
            self._unread,
            self._gate,
        )
        self._streams.add(stream)
        await stream.run()

    def end_streams(self) -> None:
        """Let every stream finish what it was given, and end."""
        for stream in [*self._streams]:
            stream.end()

    # -- inside -----------------------------------------------------------------------------

    def answer(self, waiting: _Waiting, answer: Answer) -> None:
        """Write the answer of a unary call. Raises `ServingError`: too much is unread already."""
        call = waiting.call
        nbytes = sum([len(output.data) for output in answer.outputs])
        if nbytes >= COUNTED_FROM and not self._unread.hold_for_call(call, nbytes):
            raise self._unread.refusal(call.peer())
        response = waiting.writer.write(answer, waiting.id, waiting.wanted)
        if waiting.timing:
            add_timing(response, answer)
        call.answer(response)

    def refuse(self, call: Call, model: str, version: str, error: ServingError) -> None:
        """End a unary call as the table says, and count it."""
        self._count_invalid(model, version, error)
        end_with(call, error)

    def _codec_of(self, deployment: Served) -> tuple[RequestReader, ResponseWriter]:
        return self._codecs.get(deployment) or self._codec(deployment)

    def _codec(self, deployment: Served) -> tuple[RequestReader, ResponseWriter]:
        spec = deployment.spec
        reader = RequestReader(spec, self._finder, self._max_span_bytes)
        codec = self._codecs[deployment] = (reader, ResponseWriter(spec))
        return codec

    def count_unreadable(self, error: ServingError) -> None:
        """Count a message that was none."""
        self._count_invalid("", "", error)

    def _count_invalid(self, model: str, version: str, error: ServingError) -> None:
        """Count what was refused before it became a request. What the scheduler refused was counted
        when it did."""
        if not error.counted:
            count_invalid(self._serving, model, error.reason)
