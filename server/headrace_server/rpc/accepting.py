"""Accepts the connections of a socket that listens, for as long as its task lives."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable

log = logging.getLogger("headrace.rpc")

OUT_OF_DESCRIPTORS_S = 0.1
"""Until the next try to accept a connection where the process or the system has no descriptor left;
who waits is not lost."""


async def accept(
    listener: socket.socket, full: Callable[[], bool], greet: Callable[[socket.socket], object]
) -> None:
    """Hand over each connection, but for those that come while it is full: they are sent away.

    Args:
        listener: does not block.
        greet: takes the connection over, and returns at once.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            accepted, _ = await loop.sock_accept(listener)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                log.warning("cannot accept a connection: %s", os.strerror(error.errno))
                await asyncio.sleep(OUT_OF_DESCRIPTORS_S)
            continue  # otherwise whoever came is gone already
        if full():
            accepted.close()
        else:
            greet(accepted)
