"""What a scrape tells of GPUs, read through a made-up NVML."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from headrace_server.telemetry import names
from headrace_server.telemetry.gpus import GpuMetrics, nvml_reader

UUIDS = ("GPU-aaaa", "GPU-bbbb")


class NVMLError(Exception):
    pass


class MadeUpNvml:
    """Two GPUs, the second of which has no sensor for power."""

    NVMLError = NVMLError

    def __init__(self, count: int = 2, *, installed: bool = True) -> None:
        self.count = count
        self.installed = installed
        self.asked: Counter[str] = Counter()

    def nvmlInit(self) -> None:
        if not self.installed:
            raise NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str | bytes:
        return UUIDS[handle] if handle else UUIDS[handle].encode()

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        self.asked["utilization"] += 1
        return SimpleNamespace(gpu=75, memory=10)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=80 << 30, used=20 << 30)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return self._milli(handle, 250_500)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        return self._milli(handle, 700_000)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        return self._milli(handle, 1_234_567)

    def _milli(self, handle: int, value: int) -> int:
        if handle:
            raise NVMLError("Not Supported")
        return value


def scrape(nvml: MadeUpNvml) -> dict[tuple[str, str], float]:
    registry = CollectorRegistry()
    read = nvml_reader(nvml)
    assert read is not None
    registry.register(GpuMetrics(read))
    text = generate_latest(registry).decode()
    families = list(text_string_to_metric_families(text))
    for family, metric in zip(families, names.ALL_OF_GPUS, strict=True):
        assert (family.name, family.type) == (metric.name, metric.kind)
        assert family.documentation == metric.help
    return {
        (sample.name, sample.labels["gpu_uuid"]): sample.value
        for family in families
        for sample in family.samples
    }


def test_every_gpu_tells_what_it_knows_under_the_names_that_triton_gives() -> None:
    found = scrape(MadeUpNvml())
    assert found == {
        **{("nv_gpu_utilization", uuid): 0.75 for uuid in UUIDS},
        **{("nv_gpu_memory_used_bytes", uuid): 20 << 30 for uuid in UUIDS},
        **{("nv_gpu_memory_total_bytes", uuid): 80 << 30 for uuid in UUIDS},
        ("nv_gpu_power_usage", UUIDS[0]): 250.5,
        ("nv_gpu_power_limit", UUIDS[0]): 700.0,
        ("nv_energy_consumption", UUIDS[0]): 1234.567,
    }


def test_gpus_are_asked_once_for_each_scrape_and_never_otherwise() -> None:
    nvml = MadeUpNvml(count=1)
    registry = CollectorRegistry()
    read = nvml_reader(nvml)
    assert read is not None
    registry.register(GpuMetrics(read))
    assert not nvml.asked
    for _ in range(2):
        generate_latest(registry)
    assert nvml.asked["utilization"] == 2


def test_a_machine_without_driver_or_gpus_tells_nothing() -> None:
    assert nvml_reader(MadeUpNvml(installed=False)) is None
    assert nvml_reader(MadeUpNvml(count=0)) is None


def test_they_are_documented_and_named_per_gpu() -> None:
    for metric in names.ALL_OF_GPUS:
        assert metric.kind == "gauge"
        assert metric.help.endswith(".")
        assert metric.labels == ("gpu_uuid",)
