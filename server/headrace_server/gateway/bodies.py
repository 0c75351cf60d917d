"""How bodies come and answers go: no larger, no more at a time, and no slower than may be."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus

from aiohttp import web

from headrace_server.gateway.errors import HttpError, bad_request, too_large
from headrace_server.gateway.room import Room, Share

STALLED_S = 30.0
LEAST_BYTES_PER_S = 16_384
"""A caller has so many seconds for a body or an answer, and one more for each so many bytes."""

PIECE_BYTES = 64 << 10
"""Of an answer that are handed to the network at a time: whoever takes them slowly is seen. What is
no larger goes in one piece with its headers, and lies in the buffers of its connection."""

PLAIN = "identity"

SHARE = web.RequestKey("share", Share)
"""What each call has of the room."""

log = logging.getLogger("headrace.gateway")


class Bodies:
    """Reads what is sent and sends what is answered.

    Args:
        max_bytes: of one body, unpacked.
        room: for those of all calls at a time.
        compressed: whether packed bodies are taken, and answers packed for whoever asks.
    """

    def __init__(self, max_bytes: int, room: Room, *, compressed: bool) -> None:
        self._max_bytes = max_bytes
        self._room = room
        self._compressed = compressed

    def open(self, request: web.Request) -> Share:
        """What a call that begins has of the room, which is to be given back at its end."""
        share = request[SHARE] = Share(self._room)
        return share

    def check_size(self, request: web.Request) -> None:
        """Of the body that is to come, if it says so. Raises `HttpError`."""
        if (request.content_length or 0) > self._max_bytes:
            raise too_large(self._max_bytes)

    async def read(self, request: web.Request) -> bytes:
        """All of a body. Raises `HttpError`."""
        if not self._compressed and request.headers.get("Content-Encoding", PLAIN) != PLAIN:
            raise HttpError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "expected a body that is not packed: this server runs without --compression accept",
            )
        self.check_size(request)
        share, content, pieces, pace = request[SHARE], request.content, list[bytes](), Pace()
        while True:
            try:
                if content.is_eof():  # a small body has come by now, and needs no timer
                    piece = content.read_nowait()
                else:
                    async with pace.kept(share.nbytes):
                        piece = await content.readany()
            except TimeoutError:
                raise HttpError(
                    HTTPStatus.REQUEST_TIMEOUT, f"the body comes too slowly: expected {pace}"
                ) from None
            except web.RequestPayloadError as error:
                raise bad_request(f"the body cannot be read: {error}") from None
            if not piece:
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if share.nbytes + len(piece) > self._max_bytes:
                raise too_large(self._max_bytes)
            share.take(len(piece))
            pieces.append(piece)

    async def write(
        self, request: web.Request, pieces: list[bytes], headers: dict[str, str]
    ) -> web.StreamResponse:
        """Send an answer, to whoever takes it.

        Args:
            pieces: of its body, in their order.

        Raises:
            ConnectionResetError: nobody does.
        """
        size = sum(map(len, pieces))
        if size <= PIECE_BYTES and not self._compressed:
            return web.Response(body=b"".join(pieces), headers=headers)
        response = web.StreamResponse(headers=headers)
        response.content_length = size
        if self._compressed:
            response.enable_compression()
        await response.prepare(request)
        sent, pace = 0, Pace()
        try:
            for piece in pieces:
                for begin in range(0, len(piece), PIECE_BYTES):
                    async with pace.kept(sent):
                        await response.write(memoryview(piece)[begin : begin + PIECE_BYTES])
                    sent += PIECE_BYTES
            async with pace.kept(sent):
                await response.write_eof()
        except TimeoutError:
            log.debug("%s takes its answer too slowly and is dropped", request.remote)
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the caller takes too little of its answer") from None
        return response


class Pace:
    """How fast bodies must come and answers be taken, from now on."""

    def __init__(self) -> None:
        self._begun_s = asyncio.get_running_loop().time()

    def kept(self, nbytes: int) -> asyncio.Timeout:
        """A block that ends with TimeoutError when more than these should have gone by."""
        return asyncio.timeout_at(self._begun_s + STALLED_S + nbytes / LEAST_BYTES_PER_S)

    def __str__(self) -> str:
        return f"{LEAST_BYTES_PER_S} bytes per second, after the first {STALLED_S:g} s"
