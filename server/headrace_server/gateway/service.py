"""What is served over HTTP: each path asks one method of the gRPC services."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Any

import grpc
import msgspec
from aiohttp import StreamReader, web
from google.protobuf.message import Message

from headrace.errors import server_error
from headrace.protocol import grpc_service_pb2 as pb
from headrace.protocol import grpc_service_pb2_grpc as rpc
from headrace_server.core.errors import Reason, ServingError
from headrace_server.gateway.errors import HttpError, bad_request, http_error, too_large
from headrace_server.gateway.reading import (
    fill_control,
    read_infer,
    read_object,
    read_parameters,
)
from headrace_server.gateway.room import Room, Share
from headrace_server.gateway.writing import (
    JSON,
    LENGTH_HEADER,
    Body,
    as_json,
    encode_json,
    write_infer,
)
from headrace_server.transport.status import STATUS, public_text

STALLED_S = 30.0
"""How long a caller may send nothing of its body, or take nothing of its answer, before the
connection is given up."""

PIECE_BYTES = 64 << 10
"""Of an answer that are handed to the network at a time: whoever takes them slowly is seen. What is
no larger goes in one piece with its headers, and lies in the buffers of its connection."""

MODEL = "/v2/models/{model}"
VERSION = MODEL + "/versions/{version}"

MISSING = (
    *("/v2/logging", "/v2/trace/setting", MODEL + "/trace/setting"),
    *(path + suffix for path in (MODEL, VERSION) for suffix in ("/generate", "/generate_stream")),
)
"""What Triton has and this server has not."""

SHARE = web.RequestKey("share", Share)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Ask = Callable[..., Any]

Bytes = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]

log = logging.getLogger("headrace.gateway")


class HttpService:
    """Answers HTTP calls with what the engine's process says.

    Args:
        channel: leads to that process.
        max_body_bytes: of one call, unpacked.
        room: for the bodies of all calls at a time.
        compressed: whether packed bodies are taken, and answers packed for whoever asks.
        on_call: is told of each call, once its headers have come.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        max_body_bytes: int,
        room: Room,
        *,
        compressed: bool = False,
        on_call: Callable[[web.Request], None] = lambda request: None,
    ) -> None:
        stub: Any = rpc.GRPCInferenceServiceStub(channel)
        self._stub = stub
        self._max_body_bytes = max_body_bytes
        self._room = room
        self._compressed = compressed
        self._on_call = on_call

    def application(self) -> web.Application:
        """Everything there is, by path."""
        application = web.Application(middlewares=[self._answered])
        application.on_response_prepare.append(_without_version)
        application.add_routes(
            [
                # First, because paths are looked for in this order.
                *(web.post(path + "/infer", self._infer) for path in (MODEL, VERSION)),
                web.get("/v2", self._server_metadata),
                web.get("/v2/health/live", self._live),
                web.get("/v2/health/ready", self._ready),
                web.get("/v2/models/stats", self._statistics),
                *(web.get(path + "/ready", self._model_ready) for path in (MODEL, VERSION)),
                *(web.get(path, self._model_metadata) for path in (MODEL, VERSION)),
                *(web.get(path + "/config", self._config) for path in (MODEL, VERSION)),
                *(web.get(path + "/stats", self._statistics) for path in (MODEL, VERSION)),
                web.post("/v2/repository/index", self._index),
                web.post("/v2/repository/models/{model}/load", self._load),
                web.post("/v2/repository/models/{model}/unload", self._unload),
                *self._memory_routes("system"),
                *self._memory_routes("cuda"),
                *(web.route("*", path, _missing) for path in MISSING),
            ]
        )
        return application

    # -- what there is ----------------------------------------------------------------------

    async def _server_metadata(self, request: web.Request) -> web.StreamResponse:
        asked = pb.ServerMetadataRequest()
        metadata = await self._ask(request, self._stub.ServerMetadata, asked)
        extensions = metadata.extensions
        extensions.insert([*extensions, "parameters"].index("parameters"), "binary_tensor_data")
        return _json(metadata)

    async def _live(self, request: web.Request) -> web.StreamResponse:
        answer = await self._ask(request, self._stub.ServerLive, pb.ServerLiveRequest())
        return _yes_or_no(answer.live)

    async def _ready(self, request: web.Request) -> web.StreamResponse:
        answer = await self._ask(request, self._stub.ServerReady, pb.ServerReadyRequest())
        return _yes_or_no(answer.ready)

    async def _model_ready(self, request: web.Request) -> web.StreamResponse:
        model, version = _named(request)
        asked = pb.ModelReadyRequest(name=model, version=version)
        return _yes_or_no((await self._ask(request, self._stub.ModelReady, asked)).ready)

    async def _model_metadata(self, request: web.Request) -> web.StreamResponse:
        model, version = _named(request)
        asked = pb.ModelMetadataRequest(name=model, version=version)
        return _json(await self._ask(request, self._stub.ModelMetadata, asked))

    async def _config(self, request: web.Request) -> web.StreamResponse:
        model, version = _named(request)
        asked = pb.ModelConfigRequest(name=model, version=version)
        return _json((await self._ask(request, self._stub.ModelConfig, asked)).config)

    async def _statistics(self, request: web.Request) -> web.StreamResponse:
        model, version = _named(request)
        asked = pb.ModelStatisticsRequest(name=model, version=version)
        return _json(await self._ask(request, self._stub.ModelStatistics, asked))

    # -- inference --------------------------------------------------------------------------

    async def _infer(self, request: web.Request) -> web.StreamResponse:
        length = _json_length(request)
        body = await self._body(request)
        try:
            message, wishes = read_infer(body, length, *_named(request))
            del body
            response = await self._ask(request, self._stub.ModelInfer, message)
        finally:
            request[SHARE].give_back()
        return await self._write(request, write_infer(response, wishes))

    # -- repository -------------------------------------------------------------------------

    async def _index(self, request: web.Request) -> web.StreamResponse:
        ready = read_object(await self._body(request)).get("ready", False)
        if not isinstance(ready, bool):
            raise bad_request(f"expected 'ready' to be true or false, got {ready!r:.40}")
        asked = pb.RepositoryIndexRequest(ready=ready)
        answer = await self._ask(request, self._stub.RepositoryIndex, asked)
        return web.Response(
            body=encode_json([as_json(model) for model in answer.models]), content_type=JSON
        )

    async def _load(self, request: web.Request) -> web.StreamResponse:
        asked = pb.RepositoryModelLoadRequest(model_name=request.match_info["model"])
        await self._control(request, self._stub.RepositoryModelLoad, asked)
        return _empty()

    async def _unload(self, request: web.Request) -> web.StreamResponse:
        asked = pb.RepositoryModelUnloadRequest(model_name=request.match_info["model"])
        await self._control(request, self._stub.RepositoryModelUnload, asked)
        return _empty()

    async def _control(
        self,
        request: web.Request,
        ask: Ask,
        asked: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest,
    ) -> None:
        given = read_object(await self._body(request))
        fill_control(asked.parameters, read_parameters(given.get("parameters", {})))
        await self._ask(request, ask, asked)

    # -- memory shared with clients ---------------------------------------------------------

    def _memory_routes(self, kind: str) -> list[web.RouteDef]:
        """Of `system` or `cuda` memory; the engine's process refuses what it does not have."""
        path, name = f"/v2/{kind}sharedmemory", f"{kind.title()}SharedMemory"
        status: Ask = getattr(self._stub, f"{name}Status")
        register: Ask = getattr(self._stub, f"{name}Register")
        unregister: Ask = getattr(self._stub, f"{name}Unregister")

        async def tell(request: web.Request) -> web.StreamResponse:
            asked = getattr(pb, f"{name}StatusRequest")(name=_region(request))
            answer = await self._ask(request, status, asked)
            return web.Response(
                body=encode_json([as_json(region) for region in answer.regions.values()]),
                content_type=JSON,
            )

        async def take(request: web.Request) -> web.StreamResponse:
            given = read_object(await self._body(request))
            name = _region(request)
            if kind == "system":
                await self._ask(request, register, _system_region(name, given))
            else:
                await self._ask(request, register, pb.CudaSharedMemoryRegisterRequest(name=name))
            return _empty()

        async def forget(request: web.Request) -> web.StreamResponse:
            asked = getattr(pb, f"{name}UnregisterRequest")(name=_region(request))
            await self._ask(request, unregister, asked)
            return _empty()

        return [
            web.get(path + "/status", tell),
            web.get(path + "/region/{region}/status", tell),
            web.post(path + "/region/{region}/register", take),
            web.post(path + "/unregister", forget),
            web.post(path + "/region/{region}/unregister", forget),
        ]

    # -- inside -----------------------------------------------------------------------------

    @web.middleware
    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Whatever goes wrong ends the call with one JSON object."""
        self._on_call(request)
        share = request[SHARE] = Share(self._room)
        try:
            _check_origin(request)
            return await handler(request)
        except HttpError as error:
            return _refusal(error)
        except web.HTTPException as error:  # of aiohttp: no such path, or not with this method
            text = f"there is no {request.method} {request.path}"
            if error.status == HTTPStatus.METHOD_NOT_ALLOWED:
                text += f"; expected {error.headers.get('Allow', '')}"
            return _refusal(HttpError(error.status, text))
        except ConnectionError:  # the caller is gone
            raise
        except Exception as error:
            incident = secrets.token_hex(4)
            log.error("incident %s: a call failed unexpectedly", incident, exc_info=error)
            text = f"internal error; the server's log has it under the id {incident}"
            return _refusal(HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, text))
        finally:
            share.give_back()

    async def _ask(self, request: web.Request, method: Ask, message: Message) -> Any:
        """The answer of the engine's process, asked in the caller's name. Raises `HttpError`."""
        token = request.headers.getall("Authorization", ())
        metadata = tuple(("authorization", value) for value in token)
        try:
            return await method(message, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise http_error(server_error(error)) from None

    async def _body(self, request: web.Request) -> bytes:
        """All of it. Raises `HttpError`."""
        if not self._compressed and request.headers.get("Content-Encoding", "identity") != (
            "identity"
        ):
            raise HttpError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "expected a body that is not packed: this server runs without --compression accept",
            )
        limit = self._max_body_bytes
        if (request.content_length or 0) > limit:
            raise too_large(limit)
        share, content, pieces = request[SHARE], request.content, list[bytes]()
        while True:
            try:
                # A small body has come by now, and needs no timer.
                piece = content.read_nowait() if content.is_eof() else await _some_of(content)
            except web.RequestPayloadError as error:
                raise bad_request(f"the body cannot be read: {error}") from None
            if not piece:
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if share.nbytes + len(piece) > limit:
                raise too_large(limit)
            share.take(len(piece))
            pieces.append(piece)

    async def _write(self, request: web.Request, written: Body) -> web.StreamResponse:
        """Send an answer, to whoever takes it. Raises `HttpError`: there is no room for it."""
        pieces, headers = written
        size = sum(map(len, pieces))
        request[SHARE].take(size)
        if size <= PIECE_BYTES and not self._compressed:
            return web.Response(body=b"".join(pieces), headers=headers)
        response = web.StreamResponse(headers=headers)
        if self._compressed:
            response.enable_compression()
        if not response.compression:
            response.content_length = size
        await response.prepare(request)
        for piece in pieces:
            for begin in range(0, len(piece), PIECE_BYTES):
                await self._send(request, response, piece[begin : begin + PIECE_BYTES])
        await response.write_eof()
        return response

    async def _send(self, request: web.Request, response: web.StreamResponse, piece: bytes) -> None:
        try:
            async with asyncio.timeout(STALLED_S):
                await response.write(piece)
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the caller takes nothing of its answer") from None


async def _without_version(request: web.Request, response: web.StreamResponse) -> None:
    """What this is made of is nobody's business."""
    response.headers["Server"] = "headrace"


async def _missing(request: web.Request) -> web.StreamResponse:
    reason = Reason.UNSUPPORTED
    text = public_text(ServingError(reason, feature=request.path))
    raise HttpError(STATUS[reason].http, text, reason.value)


async def _some_of(content: StreamReader) -> bytes:
    """What comes next of a body. Raises `HttpError`: nothing does."""
    try:
        async with asyncio.timeout(STALLED_S):
            return await content.readany()
    except TimeoutError:
        raise HttpError(
            HTTPStatus.REQUEST_TIMEOUT, f"nothing of the body came within {STALLED_S:g} s"
        ) from None


def _check_origin(request: web.Request) -> None:
    """Refuse what a page in somebody's browser asks for: from there, whoever made the page would
    reach what only listens to this machine. Raises `HttpError`."""
    origin = request.headers.get("Origin")
    if origin is not None:
        raise HttpError(
            HTTPStatus.FORBIDDEN, f"expected no call of a web page, got one of {origin!r:.80}"
        )


def _named(request: web.Request) -> tuple[str, str]:
    """The model and the version that the path names; empty where it names none."""
    return request.match_info.get("model", ""), request.match_info.get("version", "")


class _Region(msgspec.Struct):
    key: str
    byte_size: Bytes
    offset: Bytes = 0


def _region(request: web.Request) -> str:
    return request.match_info.get("region", "")


def _system_region(name: str, given: dict[str, Any]) -> pb.SystemSharedMemoryRegisterRequest:
    try:
        region = msgspec.convert(given, _Region)
    except msgspec.ValidationError as error:
        raise bad_request(f"expected a region of memory: {error}") from None
    return pb.SystemSharedMemoryRegisterRequest(
        name=name, key=region.key, offset=region.offset, byte_size=region.byte_size
    )


def _json_length(request: web.Request) -> int | None:
    told = request.headers.get(LENGTH_HEADER)
    if told is None:
        return None
    if not told.isascii() or not told.isdigit():
        raise bad_request(f"expected '{LENGTH_HEADER}' in bytes, got {told!r:.40}")
    return int(told)


def _json(message: Message) -> web.Response:
    return web.Response(body=encode_json(as_json(message)), content_type=JSON)


def _yes_or_no(yes: bool) -> web.Response:
    return web.Response(status=HTTPStatus.OK if yes else HTTPStatus.SERVICE_UNAVAILABLE)


def _empty() -> web.Response:
    return web.Response(body=b"{}", content_type=JSON)


def _refusal(error: HttpError) -> web.Response:
    return web.Response(
        status=error.status,
        body=encode_json(error.body()),
        headers=error.headers(),
        content_type=JSON,
    )
