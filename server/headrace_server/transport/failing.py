"""How a gRPC call ends when it gets no answer: status, text, ErrorInfo, RetryInfo."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, NoReturn, TypeVar

from headrace.errors import STATUS_TRAILER, pack_status
from headrace_server.core.errors import Reason, ServingError
from headrace_server.rpc.call import AbortedError, Call
from headrace_server.transport.status import STATUS, public_text, retry_after_s

Context = Any
"""A `Call`, where the types of generated code ask for a context of grpc's own."""

Service = TypeVar("Service")
Message = TypeVar("Message")
Answer = TypeVar("Answer")

log = logging.getLogger("headrace.transport")


async def refuse(call: Call, error: ServingError) -> NoReturn:
    """End the call with what the table says about the error's reason, and its method too."""
    end_with(call, error)
    raise AbortedError


def end_with(call: Context, error: ServingError) -> None:
    """End the call with what the table says about the error's reason."""
    status = STATUS[error.reason]
    text = public_text(error)
    code: int = status.code.value[0]
    hint_s = retry_after_s(error)
    details = pack_status(code, text, error.reason.value, retry_after_s=hint_s)
    call.end(status.code, text, ((STATUS_TRAILER, details),))


async def fail(call: Call, error: Exception) -> NoReturn:
    """End the call as INTERNAL; what happened goes to the log, only its id to the caller."""
    if isinstance(error, AbortedError):
        raise error
    await refuse(call, unexpected(error))


def unexpected(error: BaseException | None) -> ServingError:
    """INTERNAL, as callers may see it; what happened goes to the log."""
    incident = secrets.token_hex(4)
    log.error("incident %s: a call failed unexpectedly", incident, exc_info=error)
    return ServingError(Reason.INTERNAL, incident=incident)


def answering(
    method: Callable[[Service, Message], Awaitable[Answer]],
) -> Callable[[Service, Message, Context], Awaitable[Answer]]:
    """Make a method that may raise into one that ends the call as it should."""

    @wraps(method)
    async def answer(service: Service, message: Message, context: Context) -> Answer:
        try:
            return await method(service, message)
        except ServingError as error:
            await refuse(context, error)
        except Exception as error:
            await fail(context, error)

    return answer
