"""What is served over HTTP: each path asks one method of the gRPC services."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Any

import grpc
import msgspec
from aiohttp import web
from google.protobuf.message import Message

from headrace.errors import server_error
from headrace.protocol import grpc_service_pb2 as pb
from headrace.protocol import grpc_service_pb2_grpc as rpc
from headrace_server.core.errors import Reason, ServingError
from headrace_server.gateway.bodies import SHARE, Bodies
from headrace_server.gateway.errors import HttpError, bad_request, http_error, refused
from headrace_server.gateway.reading import (
    fill_control,
    read_infer,
    read_object,
    read_parameters,
)
from headrace_server.gateway.writing import (
    JSON,
    LENGTH_HEADER,
    as_json,
    encode_json,
    write_infer,
)
from headrace_server.transport.failing import unexpected
from headrace_server.transport.gate import digest_of
from headrace_server.transport.tenants import Tenants

MAX_DIGITS = 18
SERVER = "headrace"

MODEL = "/v2/models/{model}"
VERSION = MODEL + "/versions/{version}"

MISSING = (
    *("/v2/logging", "/v2/trace/setting", MODEL + "/trace/setting"),
    *(path + suffix for path in (MODEL, VERSION) for suffix in ("/generate", "/generate_stream")),
)
"""What Triton has and this server has not."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Ask = Callable[..., Any]

Bytes = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class HttpService:
    """Answers HTTP calls with what the engine's process says.

    Args:
        channel: leads to that process.
        bodies: how bodies come and go.
        tenants: who may send bodies, if not everybody.
        on_call: is told of each call, once its headers have come.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        bodies: Bodies,
        *,
        tenants: Callable[[], Tenants] | None = None,
        on_call: Callable[[web.Request], None] = lambda request: None,
    ) -> None:
        stub: Any = rpc.GRPCInferenceServiceStub(channel)
        self._stub = stub
        self._bodies = bodies
        self._tenants = tenants
        self._on_call = on_call

    def application(self) -> web.Application:
        """Everything there is, by path."""
        application = web.Application(middlewares=[self._answered])
        application.on_response_prepare.append(_without_version)
        application.add_routes(
            [
                # First, because paths are looked for in this order.
                *(
                    web.post(path + "/infer", self._infer, expect_handler=self._expected)
                    for path in (MODEL, VERSION)
                ),
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
        return _json(as_json(metadata))

    async def _live(self, request: web.Request) -> web.StreamResponse:
        answer = await self._ask_for_nobody(self._stub.ServerLive, pb.ServerLiveRequest())
        return _yes_or_no(answer.live, {"live": answer.live})

    async def _ready(self, request: web.Request) -> web.StreamResponse:
        answer = await self._ask_for_nobody(self._stub.ServerReady, pb.ServerReadyRequest())
        return _yes_or_no(answer.ready, {"ready": answer.ready})

    async def _model_ready(self, request: web.Request) -> web.StreamResponse:
        model, version = _named(request)
        asked = pb.ModelReadyRequest(name=model, version=version)
        ready = (await self._ask_for_nobody(self._stub.ModelReady, asked)).ready
        return _yes_or_no(ready, {"name": model, "ready": ready})

    async def _model_metadata(self, request: web.Request) -> web.StreamResponse:
        model, version = _named(request)
        asked = pb.ModelMetadataRequest(name=model, version=version)
        return _json(as_json(await self._ask(request, self._stub.ModelMetadata, asked)))

    async def _config(self, request: web.Request) -> web.StreamResponse:
        model, version = _named(request)
        asked = pb.ModelConfigRequest(name=model, version=version)
        return _json(as_json((await self._ask(request, self._stub.ModelConfig, asked)).config))

    async def _statistics(self, request: web.Request) -> web.StreamResponse:
        model, version = _named(request)
        asked = pb.ModelStatisticsRequest(name=model, version=version)
        return _json(as_json(await self._ask(request, self._stub.ModelStatistics, asked)))

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
        # The JSON is no longer than some times what it is made of, which is bounded.
        request[SHARE].take(response.ByteSize())
        return await self._bodies.write(request, *write_infer(response, wishes))

    # -- repository -------------------------------------------------------------------------

    async def _index(self, request: web.Request) -> web.StreamResponse:
        ready = read_object(await self._body(request)).get("ready", False)
        if not isinstance(ready, bool):
            raise bad_request(f"expected 'ready' to be true or false, got {ready!r:.40}")
        asked = pb.RepositoryIndexRequest(ready=ready)
        answer = await self._ask(request, self._stub.RepositoryIndex, asked)
        return _json([as_json(model) for model in answer.models])

    async def _load(self, request: web.Request) -> web.StreamResponse:
        asked = pb.RepositoryModelLoadRequest(model_name=request.match_info["model"])
        await self._control(request, self._stub.RepositoryModelLoad, asked)
        return _json({})

    async def _unload(self, request: web.Request) -> web.StreamResponse:
        asked = pb.RepositoryModelUnloadRequest(model_name=request.match_info["model"])
        await self._control(request, self._stub.RepositoryModelUnload, asked)
        return _json({})

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
            return _json([as_json(region) for region in answer.regions.values()])

        async def take(request: web.Request) -> web.StreamResponse:
            given = read_object(await self._body(request))
            name = _region(request)
            if kind == "system":
                await self._ask(request, register, _system_region(name, given))
            else:
                await self._ask(request, register, pb.CudaSharedMemoryRegisterRequest(name=name))
            return _json({})

        async def forget(request: web.Request) -> web.StreamResponse:
            asked = getattr(pb, f"{name}UnregisterRequest")(name=_region(request))
            await self._ask(request, unregister, asked)
            return _json({})

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
        share = self._bodies.open(request)
        try:
            _check_origin(request)
            return await handler(request)
        except HttpError as error:
            return refusal(error)
        except web.HTTPException as error:  # of aiohttp: no such path, or not with this method
            text, allowed = f"there is no {request.method} {request.path}", ""
            if error.status == HTTPStatus.METHOD_NOT_ALLOWED:
                allowed = error.headers["Allow"]
                text += f"; expected {allowed}"
            answer = refusal(HttpError(error.status, text))
            if allowed:
                answer.headers["Allow"] = allowed
            return answer
        except ConnectionError:  # the caller is gone
            raise
        except Exception as error:
            return refusal(refused(unexpected(error)))
        finally:
            share.give_back()

    async def _expected(self, request: web.Request) -> web.StreamResponse | None:
        """Whether the body that a caller waits with is wanted: told before it sends it."""
        self._on_call(request)
        try:
            if request.headers["Expect"].lower() != "100-continue":
                raise HttpError(
                    HTTPStatus.EXPECTATION_FAILED, "expected no 'Expect' but 100-continue"
                )
            self._bodies.check_size(request)
        except HttpError as error:
            answer = refusal(error)
            answer.force_close()
            return answer
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    async def _ask(self, request: web.Request, method: Ask, message: Message) -> Any:
        """The answer of the engine's process, asked in the caller's name. Raises `HttpError`."""
        return await self._answer_of(method(message, metadata=_token(request)))

    async def _ask_for_nobody(self, method: Ask, message: Message) -> Any:
        """The same, of what everybody is told."""
        return await self._answer_of(method(message))

    async def _answer_of(self, asking: Any) -> Any:
        try:
            return await asking
        except grpc.aio.AioRpcError as error:
            raise http_error(server_error(error)) from None

    async def _body(self, request: web.Request) -> bytes:
        """All of it, of somebody who may call. Raises `HttpError`."""
        if self._tenants is not None:
            digest = digest_of(_token(request))
            if digest is None or self._tenants().find(digest) is None:
                # Refused there, too, and counted.
                await self._ask(request, self._stub.ServerMetadata, pb.ServerMetadataRequest())
        return await self._bodies.read(request)


def refusal(error: HttpError) -> web.Response:
    """What is answered in place of an answer."""
    return web.Response(
        status=error.status,
        body=encode_json(error.body()),
        headers={**error.headers(), "Server": SERVER},
        content_type=JSON,
    )


async def _without_version(request: web.Request, response: web.StreamResponse) -> None:
    """What this is made of is nobody's business."""
    response.headers["Server"] = SERVER


async def _missing(request: web.Request) -> web.StreamResponse:
    raise refused(ServingError(Reason.UNSUPPORTED, feature=request.path))


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


def _token(request: web.Request) -> tuple[tuple[str, str], ...]:
    """What the caller says about who it is, as metadata. Raises `HttpError`: it is no text."""
    given = request.headers.getall("Authorization", ())
    if not all(value.isascii() and value.isprintable() for value in given):
        raise refused(ServingError(Reason.UNAUTHENTICATED))
    return tuple(("authorization", value) for value in given)


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
    if not told.isascii() or not told.isdigit() or len(told) > MAX_DIGITS:
        raise bad_request(f"expected '{LENGTH_HEADER}' in bytes, got {told!r:.40}")
    return int(told)


def _json(said: Any, status: HTTPStatus = HTTPStatus.OK) -> web.Response:
    return web.Response(status=status, body=encode_json(said), content_type=JSON)


def _yes_or_no(yes: bool, said: dict[str, Any]) -> web.Response:
    """Triton's clients look at the status, KServe's at the body."""
    return _json(said, HTTPStatus.OK if yes else HTTPStatus.SERVICE_UNAVAILABLE)
