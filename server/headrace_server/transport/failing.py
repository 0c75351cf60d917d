"""How a gRPC call ends when it gets no answer: status, text, ErrorInfo, RetryInfo."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import partial, wraps
from typing import Any, NoReturn, TypeVar

import grpc

from headrace.errors import STATUS_TRAILER, pack_status
from headrace_server.core.errors import Reason, ServingError
from headrace_server.transport.status import STATUS, public_text, retry_after_s

Context = grpc.aio.ServicerContext[Any, Any]
Service = TypeVar("Service")
Message = TypeVar("Message")
Answer = TypeVar("Answer")

log = logging.getLogger("headrace.transport")


async def refuse(context: Context, error: ServingError) -> NoReturn:
    """End the call with what the table says about the error's reason."""
    status = STATUS[error.reason]
    text = public_text(error)
    code: int = status.code.value[0]
    hint_s = retry_after_s(error)
    details = pack_status(code, text, error.reason.value, retry_after_s=hint_s)
    await abort(context, status.code, text, ((STATUS_TRAILER, details),))


async def abort(
    context: Context, code: grpc.StatusCode, text: str, trailers: Sequence[tuple[str, str | bytes]]
) -> NoReturn:
    """End the call with this status."""
    try:
        await context.abort(code, text, tuple(trailers))
    except grpc.aio.AbortError as error:
        # gRPC keeps it with the call, which the frames that it has passed by then lead back to: a
        # cycle, with the whole request in it, for the collector to find some time later.
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(partial(_forget_the_way, error))
        raise
    raise AssertionError("abort raises")


def _forget_the_way(error: BaseException, _: object) -> None:
    error.__traceback__ = error.__context__ = None


async def fail(context: Context, error: Exception) -> NoReturn:
    """End the call as INTERNAL; what happened goes to the log, only its id to the caller."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    await refuse(context, unexpected(error))


def unexpected(error: Exception) -> ServingError:
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
