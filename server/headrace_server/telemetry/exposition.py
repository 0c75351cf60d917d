"""The HTTP endpoint that Prometheus scrapes."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.registry import Collector

TlsContext = Callable[[], ssl.SSLContext]
"""Asked for each connection, so that a renewed certificate counts from the next one on."""

CONNECTION_TIMEOUT_S = 30.0
"""For each read and write: whoever connects and says nothing does not hold a thread for ever."""


class MetricsPortError(Exception):
    """The metrics address cannot be listened on; the text is one line for the operator."""


class MetricsEndpoint:
    """Serves `/metrics` from threads of its own, so that a slow scraper delays no request and no
    other scraper. With `tls` over HTTPS."""

    def __init__(self, *collectors: Collector, tls: TlsContext | None = None) -> None:
        registry = CollectorRegistry()
        for collector in collectors:
            registry.register(collector)
        self._app = make_wsgi_app(registry)
        self._tls = tls
        self._server: WSGIServer | None = None
        self._thread: Thread | None = None

    @property
    def scheme(self) -> str:
        """Of its address: http or https."""
        return "http" if self._tls is None else "https"

    def start(self, host: str, port: int) -> int:
        """Listen; port 0 takes a free one. Returns the port. Raises `MetricsPortError`."""
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._server = make_server(
                host, port, self._app, _server_class(family, self._tls), _QuietRequestHandler
            )
        except OSError as error:
            raise MetricsPortError(
                f"cannot listen for metrics on {host}:{port}: {error.strerror}; "
                "choose another with --metrics-port or --host"
            ) from None
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self._server.server_port

    def stop(self) -> None:
        """Close the port and end the thread."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


def _server_class(family: socket.AddressFamily, tls: TlsContext | None) -> type[WSGIServer]:
    class Server(ThreadingMixIn, WSGIServer):
        address_family = family
        daemon_threads = True

        def get_request(self) -> tuple[Any, Any]:
            connection, peer = super().get_request()
            connection.settimeout(CONNECTION_TIMEOUT_S)
            if tls is not None:
                # The first read shakes hands, on the connection's thread: here it would let
                # one silent peer keep out everybody.
                connection = tls().wrap_socket(
                    connection, server_side=True, do_handshake_on_connect=False
                )
            return connection, peer

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a peer that fails its handshake or hangs up is no event of ours

    return Server


class _QuietRequestHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass
