"""Closed-loop load in Python: the generator of `headrace bench`, in a process of its own.

Every server gets the same requests in the same order from the same number of callers; gRPC unary,
as a client that multiplexes, or over HTTP/1.1 connections that stay open.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from bench.peers.running import RunningPeer
from bench.peers.shots import FailedRunError, Shot
from bench.peers.wire import Http, http_request
from bench.processes import Usage
from headrace_server.bench.fleet import Fleet, GeneratorLostError
from headrace_server.bench.orders import Setup
from headrace_server.bench.plan import ClosedLoop, Timing
from headrace_server.bench.sweep import Bench

TIMEOUT_S = 60.0
PROCESS = (sys.executable, "-m", "bench.peers.generate")


@dataclass(frozen=True, slots=True)
class Loop:
    """`callers` that each wait for an answer before they ask again; `way` is `unary` or `stream`
    for gRPC, and is ignored by HTTP."""

    callers: int
    way: str = "unary"
    warmup_s: float = 0.5

    def __str__(self) -> str:
        return f"{self.callers} callers in Python"

    def require(self) -> None:
        """Needs nothing."""

    def __call__(self, server: RunningPeer, seconds: float) -> Shot:
        """Load for `seconds`, after a warm-up.

        Raises:
            FailedRunError: a request failed, or none was answered.
        """
        wire, address, way = server.peer.wire, server.address, self.way
        requests = server.workload.bodies(wire)
        if isinstance(wire, Http):
            requests = [http_request(wire, address, body) for body in requests]
            way = "http"
        setup = Setup(address, way, TIMEOUT_S, requests, index=0, processes=1, seed=0)
        readings: list[Usage] = []

        def read() -> None:  # when measuring begins and after each window, as answers are counted
            readings.append(server.usage())

        # Nothing agrees within 0, so the whole of it is measured.
        timing = Timing(self.warmup_s, seconds, tolerance=0.0)
        try:
            with Fleet([setup], PROCESS) as fleet:
                bench = Bench(fleet, timing, TIMEOUT_S, read, lambda load, windows: None)
                (step,) = bench.run([ClosedLoop(self.callers)])
        except GeneratorLostError as error:
            raise FailedRunError(str(error)) from error
        answers = round(step.throughput * step.measured_s)
        if step.errors or not answers:
            raise FailedRunError(f"{answers} answers, errors: {dict(step.errors)}")
        return Shot(
            step.throughput,
            readings[-1].since(readings[0]) / answers * 1e6,
            step.latency.p50_s * 1e3,
            step.latency.p99_s * 1e3,
            answers,
        )
