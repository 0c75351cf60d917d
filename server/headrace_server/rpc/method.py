"""How the calls of a method are served."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace_server.rpc.call import Call

Deserializer = Callable[[Any], Any]
Serializer = Callable[[Any], bytes]


def _as_it_is(data: Any) -> Any:
    return data


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a service. Exactly one of `run` and `begin` is given.

    Args:
        run: serves a call in a task of its own, which is cancelled when the caller is gone: reads
            and writes with the call's methods, and ends it as OK by returning.
        begin: serves a call of one request and one answer without a task: is given the request,
            and sees to it that the call is ended, now or later.
        one_request: whether callers send exactly one message.
        deserialize: makes of a message's bytes what is read.
        serialize: makes bytes of what is written.
    """

    run: Callable[[Call], Awaitable[None]] | None = None
    begin: Callable[[Any, Call], None] | None = None
    one_request: bool = False
    deserialize: Deserializer = _as_it_is
    serialize: Serializer = _as_it_is


def unary(behaviour: Callable[[Any, Call], Awaitable[Any]]) -> Method:
    """One request, one answer, both as bytes."""

    async def run(call: Call) -> None:
        call.answer(await behaviour(await call.read(), call))

    return Method(run, one_request=True)
