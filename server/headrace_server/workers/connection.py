"""The front's end of a worker's socket: frames and descriptors, never blocking the event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable

from headrace_server.workers import frames

log = logging.getLogger("headrace.workers")

RECEIVE_BYTES = 1 << 14
"""Hardly any frame is longer, and each time so much is allocated and given back."""
MAX_DESCRIPTORS = 8


class WorkerConnection:
    """Sends and receives frames over a connected Unix socket.

    `on_message` gets each message with the descriptor that came along (None for most); `on_closed`
    is called once, when the peer is gone or has sent what is no frame. asyncio's own transports
    cannot pass descriptors, hence the bare socket.
    """

    def __init__(
        self,
        connection: socket.socket,
        on_message: Callable[[frames.FromWorker, int | None], None],
        on_closed: Callable[[str], None],
    ) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._on_message = on_message
        self._on_closed = on_closed
        self._splitter = frames.FrameSplitter()
        self._received: deque[int] = deque()
        self._unsent: deque[tuple[bytes, int | None]] = deque()
        self._closed = False
        self._waits_to_send = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connection, self._receive)

    def send(self, message: frames.ToWorker, descriptor: int | None = None) -> None:
        """Send a frame, now or when the socket takes it; closes the descriptor once it is sent."""
        self.send_encoded(frames.encode(message), descriptor)

    def send_encoded(self, frame: bytes, descriptor: int | None = None) -> None:
        """Like `send`, for a frame that is encoded already."""
        if self._closed:
            if descriptor is not None:
                os.close(descriptor)
            return
        self._unsent.append((frame, descriptor))
        if len(self._unsent) == 1:
            self._flush()

    def close(self) -> None:
        """Close the socket and whatever descriptors were on their way. `on_closed` stays silent."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        for descriptor in self._received:
            os.close(descriptor)
        for _, unsent in self._unsent:
            if unsent is not None:
                os.close(unsent)
        self._received.clear()
        self._unsent.clear()

    def _flush(self) -> None:
        while self._unsent:
            data, descriptor = self._unsent[0]
            try:
                if descriptor is None:
                    sent = self._socket.send(data)
                else:
                    sent = socket.send_fds(self._socket, [data], [descriptor])
                    os.close(descriptor)
            except BlockingIOError:
                if not self._waits_to_send:
                    self._waits_to_send = True
                    self._loop.add_writer(self._socket, self._flush)
                return
            except OSError as error:
                self._end(f"the connection broke: {error.strerror}")
                return
            if sent < len(data):
                self._unsent[0] = (data[sent:], None)
            else:
                self._unsent.popleft()
        if self._waits_to_send:
            self._waits_to_send = False
            self._loop.remove_writer(self._socket)

    def _receive(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, RECEIVE_BYTES, MAX_DESCRIPTORS)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(f"the connection broke: {error.strerror}")
            return
        self._received += descriptors
        if not data:
            self._end("the connection was closed")
            return
        try:
            for body in self._splitter.feed(data):
                message = frames.decode_from_worker(body)
                descriptor = None
                if isinstance(message, frames.Slab):
                    if not self._received:
                        raise frames.FrameError("a slab came without its descriptor")
                    descriptor = self._received.popleft()
                self._on_message(message, descriptor)
                if self._closed:
                    return
        except frames.FrameError as error:
            self._end(str(error))
        except Exception:
            # What was not handled would be waited for for ever; a new worker starts clean.
            log.exception("a message of a worker could not be handled")
            self._end("a message could not be handled")

    def _end(self, detail: str) -> None:
        if not self._closed:
            self.close()
            self._on_closed(detail)
