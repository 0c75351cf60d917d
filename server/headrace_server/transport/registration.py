"""Registers the methods of services so that the table of errors holds before they run too.

Left alone, gRPC ends a call whose message cannot be read as UNKNOWN, with the name of a Python
exception, and one of a method that a service does not implement in a thread of its own; for both it
logs a traceback, so that callers could fill the disk. Services are added to a `Registration` in the
place of the server.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from headrace_server.core.errors import Reason, ServingError
from headrace_server.transport.failing import Context, refuse

Deserializer = Callable[[bytes], Any]
Serializer = Callable[[Any], bytes]
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
    """What generated code adds a service to. Hands the server its methods, each of which refuses
    what is `Unreadable`, and counts that with `count`; one whose behaviour bears `takes_unreadable`
    does so itself. Methods named in `codecs` read and write their messages with those.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        count: Callable[[ServingError], None],
        codecs: Mapping[str, tuple[Deserializer, Serializer]] = MappingProxyType({}),
    ) -> None:
        self._server = server
        self._count = count
        self._codecs = codecs

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Passed over: the same methods come by name."""

    def add_registered_method_handlers(self, service: str, methods: Mapping[str, Any]) -> None:
        """Add the methods of a service."""
        found = {name: self._method(name, handler) for name, handler in methods.items()}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, found),)
        )

    def _method(self, name: str, handler: Any) -> Any:
        behaviour: Behaviour = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )
        if inspect.iscoroutinefunction(behaviour):
            answering = getattr(behaviour, "takes_unreadable", False)
            adapted = behaviour if answering else self._refusing(behaviour)
        elif inspect.isasyncgenfunction(behaviour):
            adapted = self._refusing_stream(behaviour)
        else:  # of the generated base class: it raises
            adapted = _missing(name)
        kind = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        generated = handler.request_deserializer, handler.response_serializer
        deserialize, serialize = self._codecs.get(name, generated)
        message = getattr(handler.request_deserializer, "__self__", None)
        return kind(
            adapted, _forgiving(deserialize, getattr(message, "__name__", "message")), serialize
        )

    async def _refuse(self, message: Unreadable, context: Context) -> None:
        error = message.error()
        self._count(error)
        await refuse(context, error)

    def _refusing(self, behaviour: Behaviour) -> Behaviour:
        async def answer(message: Any, context: Context) -> Any:
            if isinstance(message, Unreadable):
                await self._refuse(message, context)
            return await behaviour(message, context)

        return answer

    def _refusing_stream(self, behaviour: Behaviour) -> Behaviour:
        async def readable(messages: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            async for message in messages:
                if isinstance(message, Unreadable):
                    await self._refuse(message, context)
                yield message

        async def answers(messages: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            async for answer in behaviour(readable(messages, context), context):
                yield answer

        return answers


def takes_unreadable(method: Any) -> Any:
    """Mark a method of a service that refuses what is `Unreadable` itself."""
    method.takes_unreadable = True
    return method


def _forgiving(deserialize: Deserializer, name: str) -> Deserializer:
    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return Unreadable(name, len(data))

    return read


def _missing(name: str) -> Behaviour:
    async def refused(message: Any, context: Context) -> None:
        await refuse(context, ServingError(Reason.UNSUPPORTED, feature=name))

    return refused
