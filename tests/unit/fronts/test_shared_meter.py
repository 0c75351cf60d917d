"""Rates of tenants over several processes: exactly those of one meter that saw every request."""

from __future__ import annotations

import os
from collections.abc import Iterator
from random import Random

import pytest

from headrace_server.fronts import shared_meter
from headrace_server.fronts.shared_meter import SharedMeter
from headrace_server.transport.metering import Meter
from headrace_server.transport.tenants import Tenant

TENANTS = [
    Tenant(name="both", tokens=(), requests_per_second=3.0, bytes_per_second=1_000.0),
    Tenant(name="requests", tokens=(), requests_per_second=0.5),
    Tenant(name="bytes", tokens=(), bytes_per_second=50.0),
    Tenant(name="free", tokens=()),
]


@pytest.fixture
def file() -> Iterator[int]:
    descriptor = SharedMeter.create()
    yield descriptor
    os.close(descriptor)


def test_several_meters_over_one_file_are_one(file: int) -> None:
    chance = Random(1)
    alone, shared = Meter(), [SharedMeter(file) for _ in range(3)]
    now = 100.0
    for _ in range(2_000):
        now += chance.random() / 4
        tenant, nbytes = chance.choice(TENANTS), chance.randint(1, 500)
        expected = alone.charge(tenant, nbytes, now)
        assert chance.choice(shared).charge(tenant, nbytes, now) == expected


def test_another_rate_begins_anew_as_in_one_meter(file: int) -> None:
    meters = Meter(), SharedMeter(file), SharedMeter(file)
    slow = Tenant(name="t", tokens=(), requests_per_second=1.0)
    quick = Tenant(name="t", tokens=(), requests_per_second=5.0)
    assert meters[1].charge(slow, 1, 0.0) is None
    assert meters[2].charge(slow, 1, 0.0) is not None
    assert meters[1].charge(quick, 1, 0.0) is None
    assert meters[2].charge(slow, 1, 0.0) is None


def test_more_tenants_than_slots_drive_each_other_out(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_meter, "SLOTS", 4)
    monkeypatch.setattr(shared_meter, "PROBES", 2)
    meter = SharedMeter(file)
    for number in range(50):
        tenant = Tenant(name=str(number), tokens=(), requests_per_second=1.0)
        assert meter.charge(tenant, 1, 0.0) is None
        assert meter.charge(tenant, 1, 0.0) is not None
