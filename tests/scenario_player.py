"""Reads a scenario, plays it on a scheduler and writes down what the scheduler did.

A scenario is a story in lines; `#` begins a comment.

    scheduler max_batch_size=4 max_delay=0.005       options, before anything else
    t=0.000 submit 1 rows=2 key=a                    an event: the scheduler is told this
      dispatch worker=0 batch=0 [1] rows=2 immediate what it asks for, written by `--rewrite`
      t=0.005 dispatch ...                           the same, at a wake-up later on

Events: `ready WORKER`, `lost WORKER`, `dismiss WORKER`, `cancel ID`, `complete BATCH`,
`fail BATCH`, `drain`, `abandon`, `wait` and `submit ID`, the last with any of `rows= key= bytes=
deadline= delay=yes priority= length=`. The scheduler is woken after the last event of a moment, and
whenever it asks to be between two moments. Options `timed=` and `load=`: what a full batch and
loading took (seconds).
"""

from __future__ import annotations

from typing import Any

from headrace_server.core.adaptive import AdaptivePolicy
from headrace_server.core.events import Action, Dispatch, Drained, Reject, Release, Restart
from headrace_server.core.outage import Outage
from headrace_server.core.queue import QueueLimits
from headrace_server.core.watchdog import Watchdog
from scheduler_driver import SchedulerDriver


def play(text: str) -> str:
    """The scenario with the indented lines that are true now.

    Raises:
        ValueError: a line that is no comment, option or event, with its number.
    """
    driver = SchedulerDriver(workers=0)
    written: list[str] = []
    lines = [line for line in text.splitlines() if not line.startswith(" ")]
    for number, line in enumerate(lines):
        words = line.split("#")[0].split()
        if words and words[0] == "scheduler":
            driver = _driver(_options(words[1:]))
        elif words:
            at_s = _time(words)
            if at_s is None:
                raise ValueError(f"expected 't=SECONDS EVENT ...', got {line!r}")
            written += _wake_before(driver, at_s)
            written.append(line)
            driver.now = at_s
            written += [f"  {_told(action)}" for action in _tell(driver, words[1], words[2:])]
            if _next_time(lines[number + 1 :]) != at_s:
                written += [f"  {_told(action)}" for action in driver.settle()]
            continue
        written.append(line)
    return "\n".join(written) + "\n"


def _time(words: list[str]) -> float | None:
    return float(words[0][2:]) if words[0].startswith("t=") and len(words) > 1 else None


def _next_time(lines: list[str]) -> float | None:
    following = (line.split("#")[0].split() for line in lines)
    return next((_time(words) for words in following if words), None)


def _options(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words)


def _driver(options: dict[str, str]) -> SchedulerDriver:
    max_batch_size = int(options.pop("max_batch_size", "8"))
    adaptive = options.pop("policy", "static") == "adaptive"
    timed_s = float(options.pop("timed", "0"))
    sweep = [(max_batch_size, 0, timed_s)] if timed_s else []
    known: dict[str, Any] = {
        "policy": AdaptivePolicy(max_batch_size, sweep) if adaptive else None,
        "max_batch_size": max_batch_size,
        "max_delay_s": float(options.pop("max_delay", "0")),
        "preferred_sizes": [int(size) for size in options.pop("preferred", "").split(",") if size],
        "preserve_ordering": options.pop("preserve_ordering", "no") == "yes",
        "watchdog": Watchdog(sweep),
        "outage": Outage(float(options.pop("load", "0"))),
        "limits": QueueLimits(max_requests=int(options.pop("max_requests", "100"))),
    }
    if options:
        raise ValueError(f"unknown scheduler options {sorted(options)}")
    return SchedulerDriver(workers=0, **known)


def _wake_before(driver: SchedulerDriver, moment_s: float) -> list[str]:
    told = []
    while (wakeup_s := driver.scheduler.next_wakeup()) is not None and wakeup_s < moment_s:
        told += [f"  t={wakeup_s:.3f} {_told(action)}" for action in driver.advance_to(wakeup_s)]
    return told


def _tell(driver: SchedulerDriver, event: str, words: list[str]) -> list[Action]:
    match event, words:
        case "ready", [worker]:
            return driver.add_worker(int(worker))
        case "lost", [worker]:
            return driver.lose_worker(int(worker))
        case "dismiss", [worker]:
            return driver.dismiss_worker(int(worker))
        case "submit", [request, *options]:
            return _submit(driver, int(request), _options(options))
        case "cancel", [request]:
            return driver.cancel(int(request))
        case "complete", [batch]:
            return driver.complete(int(batch))
        case "fail", [batch]:
            return driver.fail(int(batch))
        case "drain", []:
            return driver.drain()
        case "abandon", []:
            return driver.abandon()
        case "wait", []:
            return []
    raise ValueError(f"unknown event {event} {' '.join(words)}")


def _submit(driver: SchedulerDriver, request_id: int, options: dict[str, str]) -> list[Action]:
    known: dict[str, Any] = {
        "rows": int(options.pop("rows", "1")),
        "key": options.pop("key", "a"),
        "nbytes": int(options.pop("bytes", "4")),
        "deadline_s": float(options.pop("deadline", "inf")),
        "delay": options.pop("delay", "no") == "yes",
        "priority": int(options.pop("priority", "1")),
        "length": int(options.pop("length", "0")),
    }
    if options:
        raise ValueError(f"unknown options {sorted(options)} of request {request_id}")
    return driver.submit(request_id, **known)


def _told(action: Action) -> str:
    match action:
        case Dispatch(batch):
            ids = ",".join(str(request.id) for request in batch.requests)
            where = f"worker={batch.worker_id} batch={batch.id}"
            return f"dispatch {where} [{ids}] rows={batch.rows} {batch.reason.value}"
        case Reject(request, reason):
            return f"reject {request.id} {reason.value}"
        case Restart(worker_id):
            return f"restart worker={worker_id}"
        case Release(worker_id):
            return f"release worker={worker_id}"
        case Drained():
            return "drained"
