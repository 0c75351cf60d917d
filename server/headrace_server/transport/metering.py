"""Holds tenants to their requests and bytes per second."""

from __future__ import annotations

from dataclasses import dataclass

from headrace_server.transport.tenants import Tenant
from headrace_server.transport.token_bucket import TokenBucket


@dataclass(frozen=True, slots=True)
class Excess:
    """Which rate of a tenant is used up, and for how many seconds."""

    rate: float
    unit: str
    wait_s: float


class Meter:
    """One bucket per tenant and rate."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str], TokenBucket] = {}

    def charge(self, tenant: Tenant, nbytes: int, now: float) -> Excess | None:
        """Take one request of so many bytes out of the tenant's buckets, unless one is in debt.

        Returns what stood in its way, or None.
        """
        asked = [
            (self._bucket(tenant.name, unit, rate, now), unit, amount)
            for unit, rate, amount in (
                ("requests", tenant.requests_per_second, 1),
                ("bytes", tenant.bytes_per_second, nbytes),
            )
            if rate is not None
        ]
        for bucket, unit, _ in asked:
            wait_s = bucket.wait_s(now)
            if wait_s > 0:
                return Excess(bucket.rate, unit, wait_s)
        for bucket, _, amount in asked:
            bucket.take(amount)
        return None

    def _bucket(self, tenant: str, unit: str, rate: float, now: float) -> TokenBucket:
        bucket = self._buckets.get((tenant, unit))
        if bucket is None or bucket.rate != rate:
            bucket = self._buckets[tenant, unit] = TokenBucket(rate, now)
        return bucket
