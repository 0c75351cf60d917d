"""The server under test: the one place that knows how it is built.

    python tests/wire/echo_server.py [--message-bytes N] [[--streams N]
                                     [--connections N] [--grace S]

Prints the port that it listens on, serves until SIGTERM, then ends calls within the grace period.
Methods of `test.Echo`, all with bytes as messages:

    Unary      answers the request
    Stream     answers each request as it comes
    Hold       waits until the caller goes away; the request is the name of the hold
    Begun      answers once the hold of that name has begun
    Cancelled  answers once the hold of that name was cancelled
    Fail       ends with the status `fail-code` of the metadata, the request as its text, TRAILERS
    Deaf       never reads, and never answers
    Large      answers as many bytes as the request says, in decimal: `pattern`
    Metadata   answers the metadata as it came, as JSON
    Remaining  answers the seconds until the deadline, in decimal, or "none"
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import signal
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import grpc
import numpy as np

from headrace_server.rpc.call import EOF, Call
from headrace_server.rpc.method import Method
from headrace_server.rpc.method import unary as method_of
from headrace_server.rpc.server import RpcLimits, RpcServer


@dataclass(frozen=True)
class Limits:
    """What the server is told. Tests are written for any values."""

    message_bytes: int = 4 << 20
    header_bytes: int = 16 << 10  # what it is; nothing sets it
    streams: int = 100
    connections: int = 1_000
    grace_s: float = 10.0
    stalled_s: float = 10.0


TRAILERS = (("fail-note", "a note"), ("fail-note-bin", b"\x00\xff\xfe bytes"))


def pattern(size: int) -> bytes:
    """So many bytes that differ from place to place: no piece can be mistaken for another."""
    return np.arange((size + 3) // 4, dtype=">u4").tobytes()[:size]


# -- behaviours: written for any server ----------------------------------------------------------


class Holds:
    """Calls that wait, by name."""

    def __init__(self) -> None:
        self.begun: defaultdict[bytes, asyncio.Event] = defaultdict(asyncio.Event)
        self.cancelled: defaultdict[bytes, asyncio.Event] = defaultdict(asyncio.Event)

    async def hold(self, message: bytes, call: Call) -> bytes:
        self.begun[message].set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled[message].set()
        raise AssertionError("nobody lets go")

    async def await_begun(self, message: bytes, call: Call) -> bytes:
        await self.begun[message].wait()
        return message

    async def await_cancelled(self, message: bytes, call: Call) -> bytes:
        await self.cancelled[message].wait()
        return message


async def unary(message: bytes, call: Call) -> bytes:
    return message


async def stream(call: Call) -> None:
    while (message := await call.read()) is not EOF:
        await call.write(message)


async def deaf(call: Call) -> None:
    await asyncio.Event().wait()


async def fail(message: bytes, call: Call) -> bytes:
    metadata = dict(call.invocation_metadata())
    await call.abort(CODES[int(metadata["fail-code"])], bytes(message).decode(), TRAILERS)


async def large(message: bytes, call: Call) -> bytes:
    return pattern(int(message))


async def metadata(message: bytes, call: Call) -> bytes:
    return json.dumps(
        [
            [name, base64.b64encode(value).decode() if isinstance(value, bytes) else value]
            for name, value in call.invocation_metadata()
        ]
    ).encode()


async def remaining(message: bytes, call: Call) -> bytes:
    seconds = call.time_remaining()
    return b"none" if seconds is None else b"%.6f" % seconds


Behaviour: TypeAlias = Callable[..., Awaitable[Any]]


def unary_methods() -> dict[str, Behaviour]:
    """The behaviours that take one message and answer one, by method."""
    holds = Holds()
    return {
        "Unary": unary,
        "Hold": holds.hold,
        "Begun": holds.await_begun,
        "Cancelled": holds.await_cancelled,
        "Fail": fail,
        "Large": large,
        "Metadata": metadata,
        "Remaining": remaining,
    }


# -- construction: what a change of server replaces ----------------------------------------------

CODES = {code.value[0]: code for code in grpc.StatusCode}


class Server:
    """The echo service on one port of the loopback interface."""

    def __init__(self, limits: Limits) -> None:
        self._grace_s = limits.grace_s
        methods = {name: method_of(behaviour) for name, behaviour in unary_methods().items()}
        methods["Stream"], methods["Deaf"] = Method(stream), Method(deaf)
        self._server = RpcServer(
            {f"/test.Echo/{name}": method for name, method in methods.items()},
            RpcLimits(
                limits.message_bytes,
                limits.connections,
                max_calls=limits.streams,
                compressed=True,
                stalled_s=limits.stalled_s,
            ),
        )

    async def start(self) -> int:
        """Listen; the port."""
        return await self._server.start("127.0.0.1", 0)

    async def stop(self) -> None:
        """Take no more calls, and end those under way when the grace period is over."""
        await self._server.stop(self._grace_s)


async def serve(limits: Limits) -> None:
    """From the port on standard output to SIGTERM."""
    server, stopped = Server(limits), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    print(await server.start(), flush=True)
    await stopped.wait()
    await server.stop()


def main() -> None:
    parser = argparse.ArgumentParser()
    for limit in fields(Limits):
        parser.add_argument(f"--{limit.name}", type=type(limit.default), default=limit.default)
    asyncio.run(serve(Limits(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
