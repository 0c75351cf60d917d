"""What a connection asks of its socket."""

from __future__ import annotations

import asyncio
import socket

from headrace_server.http2.connection import Application
from headrace_server.http2.protocol import Http2Protocol, Watch


async def test_small_answers_do_not_wait_for_acknowledgements() -> None:
    # asyncio sets TCP_NODELAY by itself only on sockets that were created as IPPROTO_TCP.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            streams = Application(list, lambda *_: None, None)
            transport, protocol = await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Http2Protocol(streams, Watch(), lambda _: None), accepted
            )
            connected = transport.get_extra_info("socket")
            assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            protocol.abort()
