"""Buckets that several processes draw from, so that a tenant's rates hold over all of them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct

from headrace_server.transport.metering import Excess, Meter
from headrace_server.transport.tenants import Tenant
from headrace_server.transport.token_bucket import TokenBucket

SLOTS = 1 << 16
"""Tenants that there is room for; the file has pages only where one was seen."""

_SLOT = struct.Struct("<16s6d")
"""A tenant's digest; rate, level and moment of its two buckets. A rate of 0: no such bucket."""

_NOBODY = bytes(16)
PROBES = 64
"""Slots that are looked at for one tenant."""

_UNITS = ("requests", "bytes")


class SharedMeter(Meter):
    """A `Meter` whose buckets lie in a file without a name, each tenant's in a slot.

    A slot is read, changed and written under a lock of its own, which the kernel releases should
    its holder be killed. Tenants without rates never come here.

    Args:
        descriptor: of the file, as `create` made it.
    """

    @staticmethod
    def create() -> int:
        """The descriptor of a new file, for all processes."""
        descriptor = os.memfd_create("headrace-rates", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, SLOTS * _SLOT.size)
        return descriptor

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._file = descriptor

    def charge(self, tenant: Tenant, nbytes: int, now: float) -> Excess | None:
        """See `Meter.charge`. `now` is of a clock that all processes share."""
        if tenant.requests_per_second is None and tenant.bytes_per_second is None:
            return None
        digest = hashlib.blake2b(tenant.name.encode(), digest_size=16).digest()
        home = int.from_bytes(digest[:4], "little")
        for number in range(home, home + PROBES):
            place = number % SLOTS * _SLOT.size
            fcntl.lockf(self._file, fcntl.LOCK_EX, _SLOT.size, place)
            try:
                owner, *values = _SLOT.unpack(os.pread(self._file, _SLOT.size, place))
                if owner != digest:
                    if owner != _NOBODY and number < home + PROBES - 1:
                        continue
                    values = [0.0] * len(values)  # of the last one its owner is driven out
                self._read(tenant.name, values)
                excess = super().charge(tenant, nbytes, now)
                os.pwrite(self._file, _SLOT.pack(digest, *self._written(tenant.name)), place)
                return excess
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN, _SLOT.size, place)
        raise AssertionError("the last one is taken")

    def _read(self, tenant: str, values: list[float]) -> None:
        for index, unit in enumerate(_UNITS):
            state = values[3 * index : 3 * index + 3]
            if state[0]:
                self._buckets[tenant, unit] = TokenBucket.restored(*state)
            else:
                self._buckets.pop((tenant, unit), None)

    def _written(self, tenant: str) -> list[float]:
        values: list[float] = []
        for unit in _UNITS:
            bucket = self._buckets.get((tenant, unit))
            values += (0.0, 0.0, 0.0) if bucket is None else bucket.state
        return values
