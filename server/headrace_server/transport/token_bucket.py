"""A token bucket: how much may pass in a second, on average. Pure: the time is an argument."""

from __future__ import annotations


class TokenBucket:
    """Lets `rate` units pass per second, and what a second of silence has saved up at once.

    Whoever finds the bucket not in debt may take any amount: one request larger than a second's
    worth passes too, and what follows waits until it is paid for. The average holds either way.
    """

    __slots__ = ("_at_s", "_level", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        # At least one: a rate below one per second could never save up for a single request.
        self._level = max(1.0, rate)
        self._at_s = now

    @classmethod
    def restored(cls, rate: float, level: float, at_s: float) -> TokenBucket:
        """The bucket that had this `state`."""
        bucket = cls(rate, at_s)
        bucket._level = level
        return bucket

    @property
    def state(self) -> tuple[float, float, float]:
        """Its rate, what is in it, and when it was looked at last, in seconds."""
        return self.rate, self._level, self._at_s

    def wait_s(self, now: float) -> float:
        """Seconds until something may be taken; 0 if at once."""
        self._fill(now)
        # A whole unit must be there, or a rate of 1 would let two pass in its first second.
        return max(0.0, (1.0 - self._level) / self.rate)

    def take(self, amount: float) -> None:
        """Take `amount`, into debt if it must be; ask `wait_s` first."""
        self._level -= amount

    def _fill(self, now: float) -> None:
        gained = (now - self._at_s) * self.rate
        self._level = min(max(1.0, self.rate), self._level + gained)
        self._at_s = now
