"""Whether a failed call is tried again, and after how long. Pure: no clock, no sleeping."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import grpc

from headrace.errors import ServerError

__all__ = ["DEFAULT_RETRY", "RetryPolicy"]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently a call is tried again.

    A call is tried again only where that makes sense: the server sent a retry hint, or the call
    ended as UNAVAILABLE without any reason from a Headrace server, as it does when the connection
    cannot be made. A connection that breaks while a call is under way looks the same, so a request
    may run twice; use `RetryPolicy(max_attempts=1)` with a model that minds.

    The wait is drawn evenly from zero to a ceiling that grows with each attempt ("full jitter":
    Marc Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015), which spreads the
    callers that failed together. It comes on top of the server's hint, so the hint is the least
    that is waited.

    Args:
        max_attempts: attempts in all, the first included; 1 means no retry.
        initial_backoff_s: ceiling of the wait after the first attempt, in seconds.
        max_backoff_s: bound of that ceiling, in seconds.
        multiplier: growth of the ceiling from one attempt to the next.

    Raises:
        ValueError: a value is out of range.
    """

    max_attempts: int = 4
    initial_backoff_s: float = 0.02
    max_backoff_s: float = 1.0
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"expected max_attempts of at least 1, got {self.max_attempts}")
        if not 0 <= self.initial_backoff_s <= self.max_backoff_s:
            raise ValueError(
                "expected 0 <= initial_backoff_s <= max_backoff_s, "
                f"got {self.initial_backoff_s} and {self.max_backoff_s}"
            )
        if self.multiplier < 1:
            raise ValueError(f"expected a multiplier of at least 1, got {self.multiplier}")

    def delay(
        self, attempt: int, error: ServerError, remaining_s: float | None, random: Random
    ) -> float | None:
        """Seconds to wait before the next attempt; None if there should be none.

        Args:
            attempt: number of the attempt that failed, from 1.
            error: how it failed.
            remaining_s: seconds until the call's deadline; None if it has none.
            random: source of the jitter.
        """
        if attempt >= self.max_attempts or not _makes_sense(error):
            return None
        delay_s = (error.retry_after_s or 0.0) + random.uniform(0.0, self._ceiling_s(attempt))
        if remaining_s is not None and delay_s >= remaining_s:
            return None
        return delay_s

    def _ceiling_s(self, attempt: int) -> float:
        try:
            growth = self.multiplier ** (attempt - 1)
            return min(self.max_backoff_s, self.initial_backoff_s * growth)
        except OverflowError:
            return self.max_backoff_s if self.initial_backoff_s else 0.0


DEFAULT_RETRY = RetryPolicy()
"""What clients use unless told otherwise."""


def _makes_sense(error: ServerError) -> bool:
    if error.retry_after_s is not None:
        return True
    return error.code is grpc.StatusCode.UNAVAILABLE and error.reason is None
