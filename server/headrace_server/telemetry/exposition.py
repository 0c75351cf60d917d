"""The HTTP endpoint that Prometheus scrapes and probes ask."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from http import HTTPStatus
from itertools import islice
from socketserver import ThreadingMixIn
from threading import Lock, Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.registry import Collector

TlsContext = Callable[[], ssl.SSLContext]
"""Asked for each connection, so that a renewed certificate counts from the next one on."""

Probe = Callable[[str], HTTPStatus | None]
"""What is to be said of a path; None: it asks for no health."""

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

CONNECTION_TIMEOUT_S = 30.0
"""For each read and write: whoever connects and says nothing does not hold a thread for ever."""

MAX_CONNECTIONS = 128
"""At the same time, each with a thread. One more ends the oldest: however many say nothing, or one
byte at a time, whoever comes to scrape is served."""


class MetricsPortError(Exception):
    """The metrics address cannot be listened on; the text is one line for the operator."""


class MetricsEndpoint:
    """Serves `/metrics` from threads of its own, so that a slow scraper delays no request and no
    other scraper, and what `probe` says of other paths. With `tls` over HTTPS."""

    def __init__(
        self, *collectors: Collector, tls: TlsContext | None = None, probe: Probe | None = None
    ) -> None:
        registry = CollectorRegistry()
        for collector in collectors:
            registry.register(collector)
        metrics: WsgiApp = make_wsgi_app(registry)
        self._app = metrics if probe is None else _probed(probe, metrics)
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


def _probed(probe: Probe, metrics: WsgiApp) -> WsgiApp:
    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        # WSGI decodes paths as ISO-8859-1, whatever they are (PEP 3333).
        path = environ.get("PATH_INFO", "").encode("latin-1").decode(errors="replace")
        status = probe(path)
        if status is None:
            return metrics(environ, start_response)
        start_response(f"{status.value} {status.phrase}", [("Content-Length", "0")])
        return []

    return answer


def _server_class(family: socket.AddressFamily, tls: TlsContext | None) -> type[WSGIServer]:
    class Server(ThreadingMixIn, WSGIServer):
        address_family = family
        daemon_threads = True

        def __init__(self, *args: Any, **settings: Any) -> None:
            self._lock = Lock()
            self._open: dict[socket.socket, None] = {}
            super().__init__(*args, **settings)

        def process_request(self, request: Any, client_address: Any) -> None:
            with self._lock:
                oldest = [*islice(self._open, max(0, len(self._open) - MAX_CONNECTIONS + 1))]
                for one in oldest:
                    del self._open[one]
                self._open[request] = None
            for one in oldest:
                with suppress(OSError):  # it has just ended by itself
                    one.shutdown(socket.SHUT_RDWR)
            super().process_request(request, client_address)

        def shutdown_request(self, request: Any) -> None:
            with self._lock:
                self._open.pop(request, None)
            super().shutdown_request(request)

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
