"""The composition root: puts repository, engine, transport and telemetry together and runs them."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.config import ServerConfig
from headrace_server.engine.clock import Clock, LoopClock
from headrace_server.engine.deployment import Deployment, DeploymentState
from headrace_server.engine.engine import Engine
from headrace_server.engine.last_minute import LastMinute
from headrace_server.engine.observer import Observer, ObserverGroup, RefusalsOf
from headrace_server.engine.scheduling import SchedulingRules
from headrace_server.engine.statistics import Statistics
from headrace_server.models.batching import BatchingSettings, batching_settings
from headrace_server.models.completion import complete_config
from headrace_server.models.config_text import CONFIG_FILE, locate_in
from headrace_server.models.errors import ConfigError
from headrace_server.models.repository import ModelEntry, ModelSource, scan
from headrace_server.models.spec import ModelSpec, Role
from headrace_server.telemetry.exposition import MetricsEndpoint
from headrace_server.telemetry.metrics import PrometheusMetrics
from headrace_server.transport.certificates import CertificateFiles, Certificates
from headrace_server.transport.explanation_service import ExplanationService
from headrace_server.transport.gate import Gate, GateInterceptor
from headrace_server.transport.grpc_server import GrpcLimits, GrpcServer
from headrace_server.transport.grpc_service import InferenceService
from headrace_server.transport.health import HealthReporter
from headrace_server.transport.tenants import TokensFile
from headrace_server.workers.executor import ModelLoadError
from headrace_server.workers.placement import (
    InstanceGroup,
    available_cores,
    cores_to_pin,
    dealt_out,
    instance_groups,
)
from headrace_server.workers.process_executor import ProcessExecutor

GRACE_S = 1.0
"""What answers may take on their way out, once nothing runs any more."""

GC_THRESHOLDS = (20_000, 20, 20)
"""Requests make short-lived objects by the hundred; reference counts free nearly all of them, and
looking for cycles every 700 allocations, as Python does by default, shows in the profile."""

log = logging.getLogger("headrace.app")


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a running server listens, as host:port, and where to scrape it."""

    grpc: str
    metrics: str
    metrics_url: str


class Server:
    """One server over one repository: `start`, then `run_until_stopped` or `stop`.

    Raises:
        RepositoryError, CertificateError, TokensError: what the configuration names cannot be used.
    """

    def __init__(
        self, repository: Path, config: ServerConfig, observers: Sequence[Observer] = ()
    ) -> None:
        release = version("headrace")
        self._config = config
        self._entries = scan(repository)
        self._configs: dict[str, ModelConfig | None] = {e.name: e.config for e in self._entries}
        self._statistics = Statistics(time.time)
        self._metrics = PrometheusMetrics(release)
        self._last_minute = LastMinute()
        self._health = HealthReporter()
        self.engine = Engine(
            ObserverGroup(
                self._statistics, self._metrics, self._last_minute, self._health, *observers
            )
        )
        self._tls = _certificates(config)
        self._endpoint = MetricsEndpoint(
            self._metrics, None if self._tls is None else self._tls.context
        )
        self._gate: Gate | None = None
        if config.tokens:
            tokens = TokensFile(Path(config.tokens), time.monotonic)
            self._gate = Gate(tokens.tenants, self.engine, time.monotonic)
        self._release = release
        self._grpc: GrpcServer | None = None

    async def start(self) -> Addresses:
        """Listen, load every model, and return when each is ready or known to be broken.

        Raises:
            PortUnavailableError, MetricsPortError: an address cannot be listened on.
        """
        clock = LoopClock()
        self._grpc = GrpcServer(
            InferenceService(
                self.engine, self._statistics, self._config_of, self._release, gate=self._gate
            ),
            ExplanationService(self.engine, self._last_minute, clock.now, self._gate),
            self._health,
            limits=GrpcLimits(
                self._config.max_message_bytes,
                self._config.max_connections,
                compressed=self._config.compression == "accept",
            ),
            tls=self._tls,
            interceptors=() if self._gate is None else (GateInterceptor(self._gate),),
        )
        host = self._config.host
        # An IPv6 address stands in brackets where a port follows.
        shown = f"[{host}]" if ":" in host else host
        grpc_port = await self._grpc.start(shown, self._config.grpc_port)
        metrics_port = self._endpoint.start(host, self._config.metrics_port)
        log.info("loading the models of %d directories", len(self._entries))
        await self._load(clock)
        self._health.refresh()
        # What lives now lives as long as the server: collecting it over and over is waste.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        metrics = f"{shown}:{metrics_port}"
        url = f"{self._endpoint.scheme}://{metrics}/metrics"
        return Addresses(f"{shown}:{grpc_port}", metrics, url)

    async def run_until_stopped(self) -> None:
        """Serve until SIGTERM or SIGINT, then finish what was admitted; a second signal ends
        everything at once."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()

        def on_signal() -> None:
            if stop.is_set():
                log.warning("second signal: stopping at once")
                self._end_workers_now()
                raise SystemExit(1)
            stop.set()

        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, on_signal)
        await stop.wait()
        log.info("stopping: finishing what was admitted")
        await self.stop()
        log.info("stopped")

    async def stop(self) -> None:
        """Refuse new work, finish the admitted one within the drain timeout, end everything."""
        self.engine.stopping = True
        self._health.refresh()
        if not await self.engine.drain(self._config.drain_timeout_s):
            log.warning("requests were left after %s s", self._config.drain_timeout_s)
        if self._grpc is not None:
            await self._grpc.stop(GRACE_S)
        await self.engine.stop()
        await asyncio.to_thread(self._endpoint.stop)

    async def _load(self, clock: Clock) -> None:
        sources = [(entry, source) for entry in self._entries for source in entry.versions]
        for entry in self._entries:
            for number, problem in entry.broken_versions.items():
                self.engine.add_broken(entry.name, str(number), problem)
                log.error("model '%s' version %d cannot be served: %s", entry.name, number, problem)
            if entry.error and not entry.broken_versions:
                self.engine.add_broken(entry.name, "", entry.error)
                log.error("model '%s' cannot be served: %s", entry.name, entry.error)
            for note in entry.notes:
                log.warning("model '%s': %s", entry.name, note)
        budget = self._config.cores or max(1, available_cores() - 1)
        cores = max(1, budget // max(1, len(sources)))
        pins = cores_to_pin(budget) if self._config.pin_cores else ()
        hands = dealt_out(pins, cores, len(sources))
        # Loading is CPU work in the workers: more at once than cores only delays the first.
        turns = asyncio.Semaphore(available_cores())

        async def load(deployment: Deployment) -> None:
            async with turns:
                await deployment.load()
            _log_loaded(deployment)

        deployments = [
            self._deployment(entry, source, cores, own, clock)
            for (entry, source), own in zip(sources, hands, strict=True)
        ]
        for deployment in deployments:
            self.engine.add(deployment)
        self._health.watch(self.engine)
        await asyncio.gather(*(load(deployment) for deployment in deployments))

    def _deployment(
        self,
        entry: ModelEntry,
        source: ModelSource,
        cores: int,
        pins: Sequence[int],
        clock: Clock,
    ) -> Deployment:
        return deployment_of(
            entry,
            source,
            self._config,
            cores=cores,
            pins=pins,
            clock=clock,
            observer=self.engine.observer,
        )

    def _config_of(self, deployment: Deployment) -> ModelConfig:
        return complete_config(deployment.spec, self._configs[deployment.name])

    def _end_workers_now(self) -> None:
        for deployment in self.engine.deployments():
            deployment.kill()


def _certificates(config: ServerConfig) -> Certificates | None:
    if not config.tls_cert:
        return None
    ca = Path(config.tls_client_ca) if config.tls_client_ca else None
    return Certificates(CertificateFiles(Path(config.tls_cert), Path(config.tls_key), ca))


def deployment_of(
    entry: ModelEntry,
    source: ModelSource,
    config: ServerConfig,
    *,
    cores: int,
    clock: Clock,
    observer: Observer,
    pins: Sequence[int] = (),
) -> Deployment:
    """A deployment of one version on worker processes, not loaded yet."""
    source = replace(source, pickle=source.name in config.pickle_models)
    written = b"" if entry.config is None else entry.config.SerializeToString()
    groups = instance_groups(entry.config)

    def preparation(rules: SchedulingRules) -> Deployment:
        # One worker, on the CPU, with one thread: it works ahead of the model, not beside it.
        executor = ProcessExecutor(
            source,
            written,
            (InstanceGroup("cpu", 1),),
            cores=1,
            role=Role.PREPARE,
            cache=config.cache_path,
            load_timeout_s=config.load_timeout_s,
        )
        return Deployment(
            source.name,
            source.version,
            executor,
            lambda spec: replace(
                rules,
                settings=BatchingSettings(
                    max_batch_size=0,
                    objective_s=rules.settings.objective_s,
                    hang_timeout_s=rules.settings.hang_timeout_s,
                ),
            ),
            clock,
            RefusalsOf(observer),
        )

    return Deployment(
        source.name,
        source.version,
        ProcessExecutor(
            source,
            written,
            groups,
            cores=cores,
            cache=config.cache_path,
            load_timeout_s=config.load_timeout_s,
            pins=pins,
        ),
        lambda spec: _rules(_settings_of(entry, spec), config),
        clock,
        observer,
        preparation,
    )


def _settings_of(entry: ModelEntry, spec: ModelSpec) -> BatchingSettings:
    try:
        locate = locate_in(entry.directory / CONFIG_FILE)
        return batching_settings(entry.config, spec.max_batch_size, locate)
    except ConfigError as error:
        raise ModelLoadError(str(error)) from None


def _rules(settings: BatchingSettings, config: ServerConfig) -> SchedulingRules:
    if config.objective_ms is not None and settings.objective_s is None and not settings.static:
        settings = replace(settings, objective_s=config.objective_ms / 1_000)
    return SchedulingRules(
        settings, max_requests=config.max_queue_requests, max_bytes=config.max_queue_bytes
    )


def _log_loaded(deployment: Deployment) -> None:
    name, number = deployment.name, deployment.version
    if deployment.state is DeploymentState.READY:
        devices = ", ".join(deployment.devices)
        log.info("model '%s' version %d is ready on %s", name, number, devices)
    else:
        log.error("model '%s' version %d cannot be served: %s", name, number, deployment.reason)
