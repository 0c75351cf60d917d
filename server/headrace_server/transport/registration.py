"""Registers the methods of services so that the table of errors holds before they run too.

Generated code adds a service to a `Registration` in the place of grpc's server. Messages that
cannot be read, and methods that a service does not implement, are refused as everything else is.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from google.protobuf.message import DecodeError

from headrace_server.core.errors import Reason, ServingError
from headrace_server.rpc.call import EOF, Call
from headrace_server.rpc.method import Deserializer, Method, Serializer
from headrace_server.transport.failing import Context, refuse

Behaviour = Callable[[Any, Context], Any]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for a message that is none. Names no model."""

    expected: str
    got: int
    model_name: str = ""
    model_version: str = ""

    def error(self) -> ServingError:
        """What its caller is told."""
        return ServingError(Reason.MALFORMED_MESSAGE, expected=self.expected, got=self.got)


class Registration:
    """What generated code adds a service to. Makes of its methods such as the server serves, each
    of which refuses what is `Unreadable`, and counts that with `count`; one whose behaviour bears
    `takes_unreadable` does so itself. Methods named in `codecs` read and write their messages with
    those.
    """

    def __init__(
        self,
        count: Callable[[ServingError], None],
        codecs: Mapping[str, tuple[Deserializer, Serializer]] = MappingProxyType({}),
    ) -> None:
        self.methods: dict[str, Method] = {}
        """By their names as callers write them."""
        self._count = count
        self._codecs = codecs

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Passed over: the same methods come by name."""

    def add_registered_method_handlers(self, service: str, methods: Mapping[str, Any]) -> None:
        """Add the methods of a service."""
        for name, handler in methods.items():
            self.methods[f"/{service}/{name}"] = self._method(name, handler)

    def _method(self, name: str, handler: Any) -> Method:
        behaviour: Behaviour = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )
        generated = handler.request_deserializer, handler.response_serializer
        deserialize, serialize = self._codecs.get(name, generated)
        message = getattr(handler.request_deserializer, "__self__", None)
        begin = getattr(behaviour, "begins", False)
        streams = handler.request_streaming, handler.response_streaming
        return Method(
            run=None if begin else self._run(name, behaviour, *streams),
            begin=behaviour if begin else None,
            one_request=not handler.request_streaming,
            deserialize=_forgiving(deserialize, getattr(message, "__name__", "message")),
            serialize=serialize,
        )

    def _run(
        self, name: str, behaviour: Behaviour, many_requests: bool, many_answers: bool
    ) -> Callable[[Call], Awaitable[None]]:
        answering = getattr(behaviour, "takes_unreadable", False)

        async def one(call: Call) -> Any:
            message = await call.read()
            if isinstance(message, Unreadable) and not answering:
                await self._refuse(message, call)
            return message

        async def generate(call: Call) -> None:
            async for answer in behaviour(self._readable(call), call):
                await call.write(answer)

        async def answer(call: Call) -> None:
            call.answer(await behaviour(await one(call), call))

        async def write(call: Call) -> None:
            await behaviour(call if many_requests else await one(call), call)

        if inspect.isasyncgenfunction(behaviour):
            return generate
        if not inspect.iscoroutinefunction(behaviour):  # of the generated base class: it raises
            return _missing(name)
        return write if many_answers else answer

    async def _readable(self, call: Call) -> AsyncIterator[Any]:
        while (message := await call.read()) is not EOF:
            if isinstance(message, Unreadable):
                await self._refuse(message, call)
            yield message

    async def _refuse(self, message: Unreadable, context: Context) -> None:
        error = message.error()
        self._count(error)
        await refuse(context, error)


def takes_unreadable(method: Any) -> Any:
    """Mark a method of a service that refuses what is `Unreadable` itself."""
    method.takes_unreadable = True
    return method


def begins(method: Any) -> Any:
    """Mark a method of a service that only begins its calls, which are of one request each, and
    refuses what is `Unreadable` itself."""
    method.begins = True
    return method


def _forgiving(deserialize: Deserializer, name: str) -> Deserializer:
    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return Unreadable(name, len(data))

    return read


def _missing(name: str) -> Callable[[Call], Awaitable[None]]:
    async def refused(call: Call) -> None:
        await refuse(call, ServingError(Reason.UNSUPPORTED, feature=name))

    return refused
