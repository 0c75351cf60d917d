"""How many bytes a batch may have: what was configured, or what the device had memory for."""

from __future__ import annotations

from headrace_server.core.request import Batch

RETRY_S = 60.0
"""Seconds after which twice as much is tried again: the memory may have been another program's. A
try that fails costs one batch's time and nobody's answer."""

LONGEST_RETRY_S = 3600.0


class MemoryBudget:
    """The bytes of a batch's inputs, padding included, halved whenever a batch found no memory.

    Inputs stand for all that a batch takes, which grows with them. What is too small for good is
    tried ever less often: each try that fails doubles the time to the next one. A request that
    finds no memory even alone explains the failures of the batches that it rode in before, so
    those are forgotten: one such request shall not make everybody's batches small.
    """

    def __init__(self, max_bytes: int) -> None:
        self._configured = self._before = max_bytes
        self._fell_at_s = -RETRY_S
        self._grown_at_s = -LONGEST_RETRY_S
        self._grow_at_s = 0.0
        self._retry_s = RETRY_S
        self.max_bytes = max_bytes
        """Of the largest batch. A single request that has more still rides, alone."""

    def out_of_memory(self, batch: Batch, now: float) -> None:
        """This batch found none."""
        recent = now - self._fell_at_s < RETRY_S
        if len(batch.requests) == 1:
            if recent:
                self.max_bytes = self._before
            return
        if not recent:
            self._before = self.max_bytes
        self._fell_at_s = now
        failed_try = now - self._grown_at_s < self._retry_s
        self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S) if failed_try else RETRY_S
        self._grow_at_s = now + self._retry_s
        self.max_bytes = max(1, min(self.max_bytes, batch.padded_nbytes) // 2)

    def held(self, now: float) -> None:
        """A batch was computed."""
        if self.max_bytes < self._configured and now >= self._grow_at_s:
            self.max_bytes = min(2 * self.max_bytes, self._configured)
            self._grown_at_s = now
            self._grow_at_s = now + self._retry_s
