"""The HTTP endpoint that Prometheus scrapes."""

from __future__ import annotations

from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.registry import Collector


class MetricsPortError(Exception):
    """The metrics address cannot be listened on; the text is one line for the operator."""


class MetricsEndpoint:
    """Serves `/metrics` from a thread of its own, so that a slow scraper delays no request."""

    def __init__(self, collector: Collector) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(collector)
        self._server: WSGIServer | None = None
        self._thread: Thread | None = None

    def start(self, host: str, port: int) -> int:
        """Listen; port 0 takes a free one. Returns the port. Raises `MetricsPortError`."""
        try:
            self._server, self._thread = start_http_server(port, host, registry=self._registry)
        except OSError as error:
            raise MetricsPortError(
                f"cannot listen for metrics on {host}:{port}: {error.strerror}; "
                "choose another with --metrics-port or --host"
            ) from None
        return self._server.server_port

    def stop(self) -> None:
        """Close the port and end the thread."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
