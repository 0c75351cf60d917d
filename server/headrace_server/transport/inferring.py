"""Inference over gRPC, one request per call or many on a stream, whoever it is that answers."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from headrace.protocol import grpc_service_pb2 as pb
from headrace.protocol import grpc_service_pb2_grpc as rpc
from headrace_server.core.errors import ServingError
from headrace_server.engine.serving import Served, Serving, count_invalid
from headrace_server.transport.deadlines import remaining_s
from headrace_server.transport.failing import Context, fail, refuse
from headrace_server.transport.gate import Gate
from headrace_server.transport.infer_stream import DEFAULT_LIMITS, InferStream, StreamLimits
from headrace_server.transport.reading import RequestReader, wants_timing
from headrace_server.transport.regions import SpanFinder, refuse_spans
from headrace_server.transport.registration import Unreadable, takes_unreadable
from headrace_server.transport.unread import COUNTED_FROM, UnreadAnswers
from headrace_server.transport.writing import ResponseWriter, add_timing


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

    @takes_unreadable
    async def ModelInfer(self, request: pb.ModelInferRequest | Unreadable, context: Context) -> Any:
        """Run one request, in a batch with others."""
        # Written out rather than wrapped: one coroutine less on the path of every request.
        try:
            if isinstance(request, Unreadable):
                raise request.error()
            tenant = None if self._gate is None else self._gate.admit(request)
            if self._unread.scarce:
                self._unread.check(context.peer())
            deployment = self._serving.find(request.model_name, request.model_version)
            codec = self._codecs.get(deployment)
            if codec is None:
                codec = self._codec(deployment)
            reader, writer = codec
            call = reader.read(request, remaining_s(context.time_remaining()))
            if tenant is not None:
                call.tenant, call.weight = tenant.name, tenant.weight
            answer = await deployment.infer(call)
            nbytes = sum([len(output.data) for output in answer.outputs])
            if nbytes >= COUNTED_FROM and not self._unread.hold_for_call(context.peer(), nbytes):
                del answer  # the refusal may have to wait to be read, too
                raise self._unread.refusal(context.peer())
            response = writer.write(answer, request.id, call.wanted)
            if request.parameters and wants_timing(request):
                add_timing(response, answer)
            return response
        except ServingError as error:
            self._count_invalid(request.model_name, request.model_version, error)
            await refuse(context, error)
        except Exception as error:
            await fail(context, error)
        raise AssertionError("unreachable")

    # grpc.aio also takes a coroutine that reads and writes by itself; the stub's types do not.
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
