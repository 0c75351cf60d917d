"""The load generator against a real gRPC server: what it sends, counts, and when it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import grpc
import numpy as np
import pytest

from headrace.protocol import grpc_service_pb2 as pb
from headrace.protocol import grpc_service_pb2_grpc as rpc
from headrace_server.bench.arrivals import Renewal
from headrace_server.bench.fleet import GRACE_S, Fleet, GeneratorLostError
from headrace_server.bench.generator import Generator, IdleSelector
from headrace_server.bench.orders import Begin, Setup, StepReport, Stop, WindowReport
from headrace_server.bench.plan import ClosedLoop, Load, OpenLoop, Timing
from headrace_server.bench.results import Step, Window
from headrace_server.bench.sweep import Bench
from headrace_server.bench.transport import METHOD, StreamTransport, Transport, UnaryTransport

pytestmark = pytest.mark.alone

REQUESTS = [b"first", b"second", b"third"]


def setup(address: str = "", index: int = 0, processes: int = 1) -> Setup:
    return Setup(address, "unary", 5.0, REQUESTS, index, processes, seed=0)


class ScriptedTransport:
    """Answers each request as `script(number of the request)` says: a reason, after any wait."""

    def __init__(self, script: Callable[[int], str]) -> None:
        self._script = script
        self._number = count()
        self.sent: list[bytes] = []

    async def send(self, request: bytes) -> str:
        self.sent.append(request)
        return self._script(next(self._number))

    async def close(self) -> None: ...


async def run(
    transport: Transport,
    load: Load,
    *,
    seconds: float,
    hold: bool = True,
    own: Setup | None = None,
) -> tuple[StepReport, list[WindowReport]]:
    """One step of that load; everything in it counts."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[Stop] = loop.create_future()
    windows: list[WindowReport] = []
    begin_s = time.monotonic()
    loop.call_later(seconds, lambda: stop.set_result(Stop(begin_s, begin_s + seconds, hold)))
    generator = Generator(own or setup(), transport, IdleSelector())
    begin = Begin(load, begin_s, begin_s, seconds / 4)
    return await generator.run(begin, stop, windows.append), windows


@pytest.fixture
async def echo() -> AsyncIterator[tuple[str, list[int]]]:
    """A server that answers after 20 ms; its address, and the calls under way at each arrival."""
    under_way: list[int] = []
    now = 0

    async def answer(request: bytes, context: object) -> bytes:
        nonlocal now
        now += 1
        under_way.append(now)
        await asyncio.sleep(0.02)
        now -= 1
        return request

    service, _, method = METHOD.strip("/").partition("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(answer)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}", under_way
    await server.stop(None)


async def test_a_closed_loop_keeps_its_number_of_calls_under_way(
    echo: tuple[str, list[int]],
) -> None:
    address, under_way = echo
    transport = UnaryTransport(address, 5.0)
    report, windows = await run(transport, ClosedLoop(4), seconds=0.4)
    await transport.close()
    assert max(under_way) == 4
    assert report.errors == {}
    assert len(report.latencies_s) >= 8
    assert report.latencies_s.min() >= 0.019
    assert len(report.lags_s) == 0
    assert sum(len(window.latencies_s) for window in windows) <= len(report.latencies_s)


class BothWays(rpc.GRPCInferenceServiceServicer):
    """Answers at once and counts what came which way; on streams it refuses the version 'bad'."""

    def __init__(self) -> None:
        self.alone = self.streamed = 0

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> Any:
        self.alone += 1
        return pb.ModelInferResponse(id=request.id)

    async def ModelStreamInfer(  # type: ignore[override]
        self, requests: object, context: Any
    ) -> None:
        while isinstance(request := await context.read(), pb.ModelInferRequest):
            self.streamed += 1
            message = pb.ModelStreamInferResponse()
            message.infer_response.id = request.id
            if request.model_version == "bad":
                message.error_message = "Request for unknown model: 'm' is not found"
            await context.write(message)


async def test_requests_share_a_stream_once_it_is_open() -> None:
    service, server = BothWays(), grpc.aio.server()
    rpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    versions = ("1", "bad")
    messages = [pb.ModelInferRequest(model_name="m", model_version=v) for v in versions]
    transport = StreamTransport(f"127.0.0.1:{port}", 5.0)
    own = replace(setup(), requests=[message.SerializeToString() for message in messages])
    report, _ = await run(transport, ClosedLoop(4), seconds=0.4, own=own)
    await transport.close()
    await server.stop(None)
    assert service.streamed > service.alone > 0
    assert report.errors.keys() == {"NOT_FOUND"}
    assert len(report.latencies_s) > 0


async def test_an_open_loop_does_not_wait_for_answers(echo: tuple[str, list[int]]) -> None:
    address, under_way = echo
    transport = UnaryTransport(address, 5.0)
    report, _ = await run(transport, OpenLoop(400.0, Renewal(0.0)), seconds=0.4)
    await transport.close()
    assert max(under_way) > 4  # 400/s for 20 ms are 8
    # What was under way at the end is waited for: each request that was due is in.
    assert 140 <= len(report.latencies_s) <= 160


async def test_latency_counts_from_when_a_request_was_due_not_from_when_it_was_sent() -> None:
    def stall_once(number: int) -> str:
        if number == 5:
            time.sleep(0.2)  # on the event loop, so nothing can be sent meanwhile
        return ""

    transport = ScriptedTransport(stall_once)
    report, _ = await run(transport, OpenLoop(100.0, Renewal(0.0)), seconds=0.5)
    # Due every 10 ms: those that the stall delayed waited about 200, 190, 180, ... ms.
    assert (report.latencies_s > 0.1).sum() >= 9
    assert report.lags_s.max() > 0.15
    assert len(report.latencies_s) >= 45


async def test_failures_are_counted_by_reason_and_have_no_latency() -> None:
    transport = ScriptedTransport(lambda number: "queue_full" if number % 2 else "")
    report, _ = await run(transport, OpenLoop(100.0, Renewal(0.0)), seconds=0.3)
    assert report.errors.keys() == {"queue_full"}
    assert abs(report.errors["queue_full"] - len(report.latencies_s)) <= 1


async def test_a_server_that_is_not_there_is_a_reason_too() -> None:
    transport = UnaryTransport("127.0.0.1:1", 5.0)
    report, _ = await run(transport, OpenLoop(20.0, Renewal(0.0)), seconds=0.2)
    await transport.close()
    assert report.errors.keys() == {"UNAVAILABLE"}


async def test_requests_are_sent_in_turn_and_processes_begin_in_different_places() -> None:
    firsts = []
    for index in range(3):
        transport = ScriptedTransport(lambda number: "")
        load = OpenLoop(300.0, Renewal(0.0))
        await run(transport, load, seconds=0.1, own=setup(index=index, processes=3))
        firsts.append(transport.sent[0])
        start = REQUESTS.index(transport.sent[0])
        expected = [REQUESTS[(start + i) % 3] for i in range(len(transport.sent))]
        assert transport.sent == expected
    assert sorted(firsts) == sorted(REQUESTS)


def test_the_selector_knows_how_long_it_had_nothing_to_do() -> None:
    with IdleSelector() as selector:
        selector.select(0.05)
        assert 0.045 < selector.idle_s < 1.0


def test_processes_share_a_load_and_their_reports_are_one_for_each() -> None:
    # Nobody listens there: every request fails, and that is reported by both.
    with Fleet([setup("127.0.0.1:1", index, 2) for index in range(2)]) as fleet:
        begin_s = time.monotonic()
        fleet.tell(Begin(OpenLoop(100.0, Renewal(0.0)), begin_s, begin_s, 0.2))
        assert len(fleet.collect(WindowReport, 20.0)) == 2
        fleet.tell(Stop(begin_s, begin_s + 0.2, hold=True))
        reports = fleet.collect(StepReport, 20.0)
    failed = [report.errors["UNAVAILABLE"] for report in reports]
    assert 17 <= sum(failed) <= 19  # due at 10, 20, ... 190 ms
    assert max(failed) - min(failed) <= 1
    assert np.concatenate([report.latencies_s for report in reports]).size == 0


async def sweep(
    address: str, loads: Sequence[Load], watch: Callable[[Load, Sequence[Window]], None]
) -> list[Step]:
    """Steps of up to 0.6 s whose windows always agree."""

    def run_all() -> list[Step]:
        with Fleet([setup(address)]) as fleet:
            bench = Bench(fleet, Timing(0.05, 0.6, 100.0), 5.0, lambda: None, watch)
            return list(bench.run(loads))

    return await asyncio.to_thread(run_all)


async def test_a_step_ends_once_three_windows_agree(echo: tuple[str, list[int]]) -> None:
    address, _ = echo
    first, second = await sweep(address, [ClosedLoop(1), ClosedLoop(3)], lambda load, windows: None)
    for step in (first, second):
        assert step.stable
        assert len(step.windows) == 3
        assert step.measured_s == pytest.approx(0.3)
        assert step.throughput > 0
        assert 0 < step.generation.busy < 1
        assert step.server is None
    assert second.requests > first.requests


async def test_ctrl_c_ends_a_step_with_the_windows_it_has(echo: tuple[str, list[int]]) -> None:
    def press_ctrl_c(load: Load, windows: Sequence[Window]) -> None:
        if len(windows) == 2:
            raise KeyboardInterrupt

    address, _ = echo
    (step,) = await sweep(address, [ClosedLoop(1), ClosedLoop(2)], press_ctrl_c)
    assert step.interrupted
    assert not step.stable
    assert step.measured_s == pytest.approx(0.2)
    assert step.requests > 0


def test_a_process_that_is_gone_is_an_error_that_says_so() -> None:
    with Fleet([setup("127.0.0.1:1")]) as fleet:
        os.kill(fleet.pids[0], signal.SIGKILL)
        with pytest.raises(GeneratorLostError, match="ended with status -9"):
            fleet.collect(WindowReport, 20.0)


def test_processes_that_are_left_in_the_middle_of_a_step_end_without_a_word(
    capfd: pytest.CaptureFixture[str],
) -> None:
    for _ in range(5):
        with Fleet([setup("127.0.0.1:1")]) as fleet:
            begin_s = time.monotonic()
            fleet.tell(Begin(OpenLoop(100.0, Renewal(0.0)), begin_s, begin_s, 0.001))
            fleet.collect(WindowReport, 20.0)
            time.sleep(0.02)  # reports come meanwhile, and are not read
            begun_s = time.monotonic()
        assert time.monotonic() - begun_s < GRACE_S
    assert capfd.readouterr() == ("", "")
