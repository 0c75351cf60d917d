"""Says over HTTP whether the server and its models live and are ready, for probes without gRPC."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import Future
from http import HTTPStatus

from headrace_server.engine.engine import Engine

PATIENCE_S = 5.0
"""How long the event loop may take to say so. Where it does not, nobody is served either."""

_PATH = re.compile(
    r"/v2/(?:health/(?P<health>live|ready)|models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?/ready)"
)
"""Those of the Open Inference Protocol."""

METRICS_PATHS = ("/metrics", "/")
"""What Prometheus asks for, and what a person types."""


class Probes:
    """Asks the engine, on its event loop, for whoever comes on a thread of his own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        """From now on answer for what runs on this event loop."""
        self._loop = asyncio.get_running_loop()

    def answer(self, path: str) -> HTTPStatus | None:
        """OK or SERVICE_UNAVAILABLE; None for the path of the metrics; NOT_FOUND for others: a
        probe with a mistyped path must not find the server ready for ever."""
        asked = _PATH.fullmatch(path)
        if asked is None:
            return None if path in METRICS_PATHS else HTTPStatus.NOT_FOUND
        found: Future[bool] = Future()

        def look() -> None:
            if asked["health"] == "live":
                found.set_result(True)
            elif asked["health"]:
                found.set_result(self._engine.ready())
            else:
                found.set_result(self._engine.model_ready(asked["model"], asked["version"] or ""))

        try:
            assert self._loop is not None, "probed before it was opened"
            self._loop.call_soon_threadsafe(look)
            yes = found.result(PATIENCE_S)
        except (TimeoutError, RuntimeError):  # RuntimeError: the loop has ended
            yes = False
        return HTTPStatus.OK if yes else HTTPStatus.SERVICE_UNAVAILABLE
