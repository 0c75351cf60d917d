"""How a process waits: awake, for as long as that has lately been worth it, and asleep after that.

A core without work halts, and in a virtual machine it is somebody else's then: it comes back some
50 us late, with cold caches. A 784-512-512-10 network that is asked one thing at a time waits twice
per request so, and takes 250 us of CPU in place of 150. Kernels of virtual machines stay awake for
200 us themselves (Linux: cpuidle haltpoll), which is a little too short for that.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

from headrace_server.quota import cpu_quota

T = TypeVar("T")

MOST_S = 0.0005
"""Longest time awake. Who has to wait longer is asked too rarely for 50 us to matter; with twice as
long, one request at a time is 2 % quicker and costs a tenth more CPU."""

MEMORY = 0.25
NEARLY_ALL = 0.75
"""Weight of the last wait in the share of those that were short, and the share from which on it is
worth to stay awake: when five in a row were short. Where every other wait is long, as with a caller
who thinks between two requests, the process would always be awake for the wrong one."""

LEAST_QUOTA = 4.0
"""Cores that a container must be allowed for its processes to stay awake. To the system that is
work: a front and a worker take two cores while a lone caller asks, and leave as much for others.
Who has used up a quota stands still for the rest of a tenth of a second: with one core a lone
caller's p99 was 29 ms awake, and is 1.8 asleep (p50 0.6 and 1.0)."""


class AwakeWaiting:
    """Waits for whatever can be looked at: files, a socket.

    Whoever else wants the core meanwhile gets it.

    Args:
        clock: seconds.
        give_way: lets others have the core.
        quota: cores that the system lets this process and those beside it have.
    """

    def __init__(
        self,
        clock: Callable[[], float] = perf_counter,
        give_way: Callable[[], object] = os.sched_yield,
        quota: float | None = None,
    ) -> None:
        self._clock = clock
        self._give_way = give_way
        quota = cpu_quota() if quota is None else quota
        self._worth_from = NEARLY_ALL if quota >= LEAST_QUOTA else math.inf
        self._short = 0.0

    def wait(self, look: Callable[[float | None], T], timeout: float | None) -> T:
        """What `look` finds, after that time at most; None waits as long as it takes.

        Args:
            look: waits asleep for the time it is given, 0 for none at all; what it finds is true,
                unless it is nothing.
        """
        clock = self._clock
        began_s = clock()
        if self._short > self._worth_from and (timeout is None or timeout > MOST_S):
            until_s = began_s + MOST_S
            found = look(0)
            while not found and clock() < until_s:
                self._give_way()
                found = look(0)
            if not found:
                found = look(None if timeout is None else timeout - MOST_S)
        else:
            found = look(timeout)
        is_short = bool(found) and clock() - began_s < MOST_S
        self._short += MEMORY * (is_short - self._short)
        return found
