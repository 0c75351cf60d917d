"""What may happen to a scheduler (events: past facts) and what it asks for (actions)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from headrace_server.core.errors import Reason
from headrace_server.core.request import Batch, Request


@dataclass(slots=True, frozen=True)
class RequestSubmitted:
    """A valid request arrived. It is admitted or refused at once; it is never dispatched by this
    event itself: arrivals of one moment are decided together, at the wake-up that the scheduler
    asks for at that very moment."""

    request: Request


@dataclass(slots=True, frozen=True)
class RequestCancelled:
    """The caller went away. A waiting request leaves; one in flight runs on with its neighbours,
    and is not run again should the worker be lost."""

    request_id: int


@dataclass(slots=True, frozen=True)
class WorkerReady:
    """A worker has loaded the model, is warm, and takes batches."""

    worker_id: int


@dataclass(slots=True, frozen=True)
class WorkerLost:
    """A worker is gone, with everything it held."""

    worker_id: int


@dataclass(slots=True, frozen=True)
class WorkerDismissed:
    """A worker is no longer wanted: it finishes what it holds and gets nothing more. Answered by
    `Release`, at once or later, and also when it is lost first or did not live in the first place.
    """

    worker_id: int


@dataclass(slots=True, frozen=True)
class BatchCompleted:
    """A worker answered the batch. Like a submission it dispatches nothing by itself: the requests
    of those who were just answered shall ride in the next batch, not in the one after.

    `least_s` and `most_s` bound how long it ran, in seconds, by the worker's own clock: the model's
    own time, which no other batch shares, and all that the worker spent on it.
    """

    batch_id: int
    least_s: float = 0.0
    most_s: float = math.inf


@dataclass(slots=True, frozen=True)
class BatchFailed:
    """The model raised, or answered nonsense, or the batch could not even be handed over, while it
    was staged perhaps; the worker itself lives. The requests of the batch are run once more, each
    alone; one that fails alone is refused. Where the device had no memory for the batch they ride
    again in smaller ones."""

    batch_id: int
    out_of_memory: bool = False


@dataclass(slots=True, frozen=True)
class TimeAdvanced:
    """The moment that `next_wakeup` named has come (or passed)."""


@dataclass(slots=True, frozen=True)
class ProcessIdle:
    """The process has nothing else to do: no request is about to come. Worth telling while the
    scheduler `awaits_idle`."""


@dataclass(slots=True, frozen=True)
class DrainStarted:
    """No new work; finish what was admitted. Answered by `Drained`, at once or later."""


@dataclass(slots=True, frozen=True)
class ServiceAbandoned:
    """No worker will come any more: everything that waits, runs or still arrives is refused with
    this reason. Answered by `Drained` too, unless that was said before."""

    reason: Reason


Event = (
    RequestSubmitted
    | RequestCancelled
    | WorkerReady
    | WorkerLost
    | WorkerDismissed
    | BatchCompleted
    | BatchFailed
    | TimeAdvanced
    | ProcessIdle
    | DrainStarted
    | ServiceAbandoned
)


@dataclass(slots=True, frozen=True)
class Dispatch:
    """Run this batch on its worker, behind what the worker already holds."""

    batch: Batch


@dataclass(slots=True, frozen=True)
class Reject:
    """Tell the caller that there will be no answer, and why."""

    request: Request
    reason: Reason


@dataclass(slots=True, frozen=True)
class Restart:
    """End this worker, which hangs, at once, and start another in its place. It is taken for lost
    already: what it held is run elsewhere, and news of its loss changes nothing."""

    worker_id: int


@dataclass(slots=True, frozen=True)
class Release:
    """End this worker, which was dismissed and holds nothing any more, for good."""

    worker_id: int


@dataclass(slots=True, frozen=True)
class Drained:
    """Nothing waits and nothing runs: the workers may be stopped. Said once."""


Action = Dispatch | Reject | Restart | Release | Drained
