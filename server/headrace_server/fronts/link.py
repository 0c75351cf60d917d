"""One end of the socket between a front and the engine's process: bundles of messages."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable
from typing import Any

import msgspec

from headrace_server.fronts import frames
from headrace_server.serving_loop import Handle, call_last_of
from headrace_server.workers.frames import FrameError, FrameSplitter

UNACKNOWLEDGED = 16
"""Bundles that are dealt with before the other side is told so, where nothing else is said: until
then their memory is not used again."""

LARGE_BYTES = 1 << 20
"""Contents that close a bundle, so that no bundle is much larger than one message."""

_LENGTH = struct.Struct("<I")

log = logging.getLogger("headrace.fronts")


class Link(asyncio.Protocol):
    """Sends what is said in one turn of the event loop in one piece.

    Args:
        read: decodes a bundle of the other side.
        on_message: gets each message.
        on_seen: is told how many bundles the other side has dealt with.
        on_closed: is called once, when the other side is gone, or said what makes no sense.
    """

    def __init__(
        self,
        read: Callable[[bytes], frames.Bundle],
        on_message: Callable[[Any], None],
        on_seen: Callable[[int], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._read = read
        self._on_message = on_message
        self._on_seen = on_seen
        self._on_closed = on_closed
        self._call_last = call_last_of(asyncio.get_running_loop())
        self._splitter = FrameSplitter(frames.MAX_BUNDLE_BYTES)
        self._transport: asyncio.Transport | None = None
        self._unsent: list[frames.FromFront | frames.ToFront] = []
        self._unsent_bytes = 0
        self._flushing: Handle | None = None
        self._sent = self._seen = self._told = 0

    @property
    def next_bundle(self) -> int:
        """The number, from 1, of the bundle that takes what is sent next."""
        return self._sent + 1

    def send(self, message: frames.FromFront | frames.ToFront, nbytes: int = 0) -> None:
        """Send a message with so many bytes of contents; to whoever is gone nothing is sent."""
        self._unsent.append(message)
        self._unsent_bytes += nbytes
        if self._unsent_bytes >= LARGE_BYTES:
            self._flush()
        else:
            self.acknowledge()

    def acknowledge(self) -> None:
        """Tell the other side soon what was dealt with."""
        if self._flushing is None:
            self._flushing = self._call_last(self._flush)

    def close(self) -> None:
        """Send what is left, and close. `on_closed` stays silent."""
        self._on_closed = _nobody
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def _flush(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._transport is None:
            return  # and the first thing that is sent then goes behind this
        messages, self._unsent, self._unsent_bytes = self._unsent, [], 0
        if self._transport.is_closing():
            return
        try:
            body = frames.encoder.encode((self._seen, messages))
            bundle = _LENGTH.pack(len(body)) + body
        except Exception:
            # Whoever waits for what is in it, and for its number, learns that from the end alone.
            log.exception("a bundle of %d messages could not be sent", len(messages))
            self._abort()
            return
        self._transport.write(bundle)
        self._sent += 1
        self._told = self._seen

    # -- what asyncio reports ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        try:
            for body in self._splitter.feed(data):
                bundle = self._read(body)
                for message in bundle.messages:
                    self._on_message(message)
                self._seen += 1
                self._on_seen(bundle.seen)
        except (FrameError, msgspec.MsgspecError) as error:
            log.error("expected a bundle of messages: %s", error)
            self._abort()
        except Exception:
            # What was not handled would be waited for for ever.
            log.exception("a message between a front and the engine could not be handled")
            self._abort()
        if self._seen - self._told >= UNACKNOWLEDGED:
            self.acknowledge()

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        on_closed, self._on_closed = self._on_closed, _nobody
        on_closed()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _nobody() -> None:
    """Whom it is told that closed the link itself."""
