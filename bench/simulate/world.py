"""A simulated server: the very scheduler that serves, fed with arrivals, on simulated workers."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import chain
from random import Random

from bench.simulate.callers import Callers, OpenLoop
from bench.simulate.profiles import Profile
from headrace_server.core.events import (
    Action,
    BatchCompleted,
    Dispatch,
    ProcessIdle,
    RequestSubmitted,
    TimeAdvanced,
    WorkerReady,
)
from headrace_server.core.policy import BatchPolicy
from headrace_server.core.queue import QueueLimits
from headrace_server.core.request import Batch
from headrace_server.core.scheduler import Scheduler


@dataclass(slots=True)
class Outcome:
    """What became of the requests of one run. Durations in seconds.

    `latencies_by_key` are those of the requests that were answered, late or not, in order of
    answer.
    """

    offered: int = 0
    on_time: int = 0
    late: int = 0
    refused: int = 0
    span_s: float = 0.0
    latencies_by_key: dict[Hashable, list[float]] = field(default_factory=dict)
    batch_rows: list[int] = field(default_factory=list)

    @property
    def on_time_share(self) -> float:
        """Answered within their deadline, of all that came."""
        return self.on_time / self.offered

    @property
    def goodput(self) -> float:
        """Requests answered on time per second."""
        return self.on_time / self.span_s

    @property
    def latencies_s(self) -> list[float]:
        """Of all that were answered."""
        return list(chain.from_iterable(self.latencies_by_key.values()))


def simulate(
    policy: BatchPolicy,
    arrivals: Sequence[float],
    profile: Profile,
    *,
    workers: int,
    objective_s: float,
    limits: QueueLimits | None = None,
    lengths: Sequence[int] | None = None,
    keys: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Outcome:
    """Run the scheduler over these arrivals (see `OpenLoop`); returns when everybody has left."""
    callers = OpenLoop(arrivals, objective_s, lengths, keys)
    return play(policy, callers, profile, workers=workers, limits=limits, seed=seed)


def play(
    policy: BatchPolicy,
    callers: Callers,
    profile: Profile,
    *,
    workers: int,
    limits: QueueLimits | None = None,
    seed: int = 0,
) -> Outcome:
    """Run the scheduler for these callers until none of them sends and everybody has left.

    Timers are exact, what happens at one moment is seen together, as in the engine, and between
    such moments the process is idle.
    """
    scheduler = Scheduler(policy, limits or QueueLimits(max_requests=1 << 30))
    handle, wakeup = scheduler.handle, scheduler.next_wakeup
    random = Random(seed)
    outcome = Outcome()
    latencies = outcome.latencies_by_key
    running: list[tuple[float, int, Batch]] = []
    free_s = [0.0] * workers
    for worker in range(workers):
        handle(WorkerReady(worker), 0.0)

    def perform(actions: list[Action], now: float) -> None:
        for action in actions:
            if isinstance(action, Dispatch):
                batch = action.batch
                start_s = max(now + profile.hop_s, free_s[batch.worker_id])
                end_s = start_s + profile.sample(batch.rows, batch.length, random)
                free_s[batch.worker_id] = end_s
                heappush(running, (end_s, batch.id, batch))
                outcome.batch_rows.append(batch.rows)
            else:
                outcome.refused += 1

    began_s = last_s = callers.next_s
    now = 0.0
    while True:
        wake_s = wakeup()
        arrival_s = callers.next_s
        end_s = running[0][0] if running else math.inf
        due_s = math.inf if wake_s is None else max(now, wake_s)
        if end_s <= arrival_s and end_s <= due_s:
            if end_s == math.inf:
                break
            now, _, batch = heappop(running)
            for request in batch.requests:
                latencies.setdefault(request.key, []).append(now - request.arrival_s)
                if now <= request.deadline_s:
                    outcome.on_time += 1
                else:
                    outcome.late += 1
                callers.answered(request, now)
            actions = handle(BatchCompleted(batch.id), now)
        elif arrival_s <= due_s:
            now = last_s = arrival_s
            outcome.offered += 1
            actions = handle(RequestSubmitted(callers.send()), now)
        else:
            now = due_s
            actions = handle(TimeAdvanced(), now)
            if scheduler.awaits_idle:
                actions += handle(ProcessIdle(), now)
        if actions:
            perform(actions, now)
    outcome.span_s = max(now, last_s) - began_s
    scheduler.check_invariants()
    return outcome
