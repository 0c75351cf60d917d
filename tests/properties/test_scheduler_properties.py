"""Whatever happens in whatever order, every request leaves once and no rule of batching breaks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from headrace_server.core.adaptive import AdaptivePolicy
from headrace_server.core.cost import Sample
from headrace_server.core.errors import Reason
from headrace_server.core.events import Action, BatchCompleted, BatchFailed, Dispatch
from headrace_server.core.queue import QueueLimits
from headrace_server.core.request import Batch, Request
from headrace_server.core.watchdog import Watchdog
from scheduler_driver import SchedulerDriver, rejections

MAX_BATCH_SIZE = 8
MAX_BATCH_BYTES = 300
WORKERS = range(3)
SWEEP = tuple(
    (rows, length, 0.002 + rows * (0.001 + length * 1e-5)) for rows in (1, 8) for length in (0, 90)
)

REQUESTS = st.fixed_dictionaries(
    {
        "rows": st.integers(1, MAX_BATCH_SIZE),
        "key": st.sampled_from("aab"),
        "nbytes": st.sampled_from([1, 40, 150, 400]),
        "patience_s": st.sampled_from([math.inf, math.inf, 0.0, 0.005, 0.5]),
        "delay": st.booleans(),
        "priority": st.integers(1, 2),
        "length": st.sampled_from([0, 0, 10, 90]),
        "tenant": st.sampled_from(["", "", "heavy", "light"]),
    }
)

WEIGHTS = {"": 1.0, "heavy": 3.0, "light": 0.5}

Place = tuple[str, int, object]
"""A tenant, a priority level and a batch key: within one, first come is first served."""


class SchedulerMachine(RuleBasedStateMachine):
    """Random events on one scheduler; the driver checks the books after each of them."""

    driver: SchedulerDriver
    fresh: set[int]
    last_in: dict[Place, int]
    judged: int
    in_order_of_arrival: bool

    @initialize(
        adaptive=st.booleans(),
        sweep=st.sampled_from([(), SWEEP]),
        preferred=st.lists(st.integers(1, MAX_BATCH_SIZE), max_size=3),
        max_delay_s=st.sampled_from([0.0, 0.01, 1.0]),
        preserve_ordering=st.booleans(),
        max_requests=st.sampled_from([5, 1_000]),
        max_requests_by_level=st.sampled_from([{}, {2: 4}]),
        hang_timeout_s=st.sampled_from([None, None, 0.05]),
        workers=st.integers(0, len(WORKERS)),
    )
    def begin(
        self,
        adaptive: bool,
        sweep: Sequence[Sample],
        preferred: Sequence[int],
        max_delay_s: float,
        preserve_ordering: bool,
        max_requests: int,
        max_requests_by_level: dict[int, int],
        hang_timeout_s: float | None,
        workers: int,
    ) -> None:
        self.fresh, self.last_in, self.judged = set(), {}, 0
        self.dismissed: set[int] = set()
        self.in_order_of_arrival = not adaptive
        self.driver = SchedulerDriver(
            workers=workers,
            policy=AdaptivePolicy(MAX_BATCH_SIZE, sweep, MAX_BATCH_BYTES) if adaptive else None,
            max_batch_size=MAX_BATCH_SIZE,
            preferred_sizes=preferred,
            max_delay_s=max_delay_s,
            max_batch_bytes=MAX_BATCH_BYTES,
            limits=QueueLimits(max_requests, max_requests_by_level=max_requests_by_level),
            preserve_ordering=preserve_ordering,
            watchdog=Watchdog(sweep, hang_timeout_s),
        )
        self.alive = set(range(workers))

    @rule(requests=st.lists(REQUESTS, min_size=1, max_size=6), settled=st.booleans())
    def submit(self, requests: Sequence[dict[str, Any]], settled: bool) -> None:
        for request in requests:
            request_id = len(self.driver.requests) + 1
            self.fresh.add(request_id)
            patience_s = request["patience_s"]
            options = {name: request[name] for name in request if name != "patience_s"}
            actions = self.driver.submit(
                request_id,
                deadline_s=self.driver.now + patience_s,
                weight=WEIGHTS[request["tenant"]],
                **options,
            )
            assert not any(isinstance(action, Dispatch) for action in actions)
        if settled:
            self.driver.settle()
        self.judge()

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.01, 0.1, 2.0]))
    def advance(self, seconds: float) -> None:
        self.let_pass(seconds)

    @rule()
    def be_idle(self) -> None:
        self.driver.idle()
        assert not self.driver.scheduler.awaits_idle
        self.judge()

    @precondition(lambda self: self.driver.in_flight)
    @rule(choice=st.randoms(use_true_random=False), failed=st.sampled_from([False, False, True]))
    def finish_a_batch(self, choice: Random, failed: bool) -> None:
        running = sorted({b.worker_id: b.id for b in reversed(self.in_flight())}.values())
        # Also one that is staged may fail: it could not be handed over.
        batch_id = choice.choice([*self.driver.in_flight] if failed else running)
        self.driver.fail(batch_id) if failed else self.driver.complete(batch_id)
        self.judge()

    @rule(request_id=st.integers(1, 100))
    def cancel(self, request_id: int) -> None:
        self.driver.cancel(request_id)
        self.judge()

    @rule(worker=st.sampled_from(WORKERS))
    def lose_or_restore(self, worker: int) -> None:
        if worker in self.alive:
            for batch in self.in_flight():
                if batch.worker_id == worker:
                    self.fresh -= {request.id for request in batch.requests}
            self.alive.remove(worker)
            self.driver.lose_worker(worker)
        else:
            self.alive.add(worker)
            self.driver.add_worker(worker)
        self.judge()

    @rule(worker=st.sampled_from(WORKERS))
    def dismiss(self, worker: int) -> None:
        held = any(batch.worker_id == worker for batch in self.in_flight())
        released = len(self.driver.released)
        self.driver.dismiss_worker(worker)
        assert (len(self.driver.released) > released) == (not held)
        self.dismissed.add(worker)
        self.judge()

    @rule(batch_id=st.integers(-1, 60))
    def hear_of_a_batch_that_is_not_in_flight(self, batch_id: int) -> None:
        if batch_id not in self.driver.in_flight:
            assert self.driver.handle(BatchCompleted(batch_id)) == []
            assert self.driver.handle(BatchFailed(batch_id)) == []

    @precondition(lambda self: len(self.driver.requests) > 20)
    @rule(abandoned=st.sampled_from([False, False, False, True]))
    def end(self, abandoned: bool) -> None:
        if abandoned:
            self.driver.abandon()
            self.alive.clear()
        else:
            self.driver.drain()
        assert rejections(self.driver.submit()) == [(len(self.driver.requests), Reason.STOPPING)]
        self.judge()

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        driver = self.driver
        driver.drain()
        # Every turn runs everything that was in flight and lets a whole queue delay pass.
        for _ in range(2 * len(driver.requests) + 2):
            for worker in set(WORKERS) - self.alive:
                driver.add_worker(worker)
            self.alive = set(WORKERS)
            for batch in self.in_flight():
                driver.complete(batch.id)
            self.let_pass(1.0)
        assert set(driver.outcomes) == set(driver.requests), "somebody starved"
        assert driver.drained == 1
        assert driver.scheduler.next_wakeup() is None
        assert driver.scheduler.queue.nbytes == 0

    # -- judgement --------------------------------------------------------------------------

    def let_pass(self, seconds: float) -> None:
        """Let time pass, and judge after every wake-up: what was dispatched may hang in between."""
        self.judge()
        until_s = self.driver.now + seconds
        while (wakeup_s := self.driver.scheduler.next_wakeup()) is not None and wakeup_s < until_s:
            self.driver.advance_to(max(wakeup_s, self.driver.now))
            self.judge()
        self.driver.advance_to(until_s)
        self.judge()

    def in_flight(self) -> list[Batch]:
        return list(self.driver.in_flight.values())

    def judge(self) -> None:
        """Look at every batch that was dispatched since the last time, and at who is alive."""
        gone = {*self.driver.restarted, *self.driver.released}
        self.alive -= gone
        self.dismissed -= gone
        self.driver.restarted.clear()
        self.driver.released.clear()
        batches = self.driver.dispatched[self.judged :]
        self.judged += len(batches)
        for batch in batches:
            self.judge_batch(batch)

    def judge_batch(self, batch: Batch) -> None:
        requests = batch.requests
        assert batch.worker_id not in self.dismissed, "a worker that was dismissed gets more"
        assert requests, "an empty batch"
        assert len({request.key for request in requests}) == 1, "keys are mixed"
        assert batch.rows == sum(request.rows for request in requests)
        assert batch.rows <= MAX_BATCH_SIZE
        assert len(requests) == 1 or sum(r.nbytes for r in requests) <= MAX_BATCH_BYTES
        for request in requests:
            in_time = request.deadline_s > batch.dispatched_s
            assert in_time or request.delay_when_late, "late, yet dispatched"
            assert request.attempts < 2, "blamed twice, yet dispatched"
            if self.in_order_of_arrival and request.id in self.fresh and in_time:
                self.judge_turn(request)
            self.fresh.discard(request.id)

    def judge_turn(self, request: Request) -> None:
        """A request rides for the first time: nobody in its place was to ride before it."""
        place = (request.tenant, request.priority, request.key)
        assert request.id > self.last_in.get(place, 0), "overtaken within its level and key"
        self.last_in[place] = request.id
        overtaken = [
            waiting
            for waiting in self.driver.scheduler.queue
            if (waiting.tenant, waiting.priority, waiting.key) == place
            and waiting.id not in self.fresh
            and not waiting.delay_when_late
        ]
        # Of several tenants, what stands ahead already stays there.
        assert not overtaken or self.driver.scheduler.queue.shared, (
            "new work overtook work given back by a worker"
        )


SchedulerMachine.TestCase.settings = settings(stateful_step_count=50)
TestScheduler = SchedulerMachine.TestCase


def test_actions_of_an_event_name_each_request_once() -> None:
    driver = SchedulerDriver(workers=3, max_batch_size=3)
    for request_id in range(1, 20):
        driver.submit(request_id, rows=1 + request_id % 3, key=request_id % 2)
    actions: list[Action] = driver.settle()
    named = [
        r.id for action in actions if isinstance(action, Dispatch) for r in action.batch.requests
    ]
    assert len(named) == len(set(named))
