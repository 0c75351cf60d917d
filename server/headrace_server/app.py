"""The composition root: puts repository, engine, transport and telemetry together and runs them."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.config import ServerConfig, own_cores
from headrace_server.engine.clock import Clock, LoopClock
from headrace_server.engine.deployment import Deployment
from headrace_server.engine.engine import Engine
from headrace_server.engine.last_minute import LastMinute
from headrace_server.engine.model_control import ModelControl
from headrace_server.engine.observer import Observer, ObserverGroup
from headrace_server.engine.scheduling import SchedulingRules
from headrace_server.engine.statistics import Statistics
from headrace_server.fronts.fleet import FrontFleet
from headrace_server.fronts.frames import Settings as FrontSettings
from headrace_server.gateway.gateway_process import Gateway
from headrace_server.gateway.settings import Settings as GatewaySettings
from headrace_server.memory import give_back_freed, keep_one_heap, settle_objects
from headrace_server.models.batching import BatchingSettings, batching_settings
from headrace_server.models.completion import complete_config
from headrace_server.models.config_text import CONFIG_FILE, locate_in
from headrace_server.models.errors import ConfigError, RepositoryError
from headrace_server.models.repository import ModelEntry, ModelSource, scan
from headrace_server.models.spec import ModelSpec, Role
from headrace_server.rpc.server import RpcLimits
from headrace_server.telemetry.exposition import MetricsEndpoint
from headrace_server.telemetry.gpus import gpu_metrics
from headrace_server.telemetry.metrics import PrometheusMetrics
from headrace_server.telemetry.probes import Probes
from headrace_server.transport.certificates import certificates_of
from headrace_server.transport.explanation_service import ExplanationService
from headrace_server.transport.gate import Gate
from headrace_server.transport.grpc_server import GrpcServer
from headrace_server.transport.grpc_service import InferenceService
from headrace_server.transport.health import HealthReporter
from headrace_server.transport.regions import RegionTable
from headrace_server.transport.tenants import TokensFile
from headrace_server.transport.unread import MAX_BYTES as MAX_UNREAD_BYTES
from headrace_server.workers.executor import ModelLoadError
from headrace_server.workers.nursery import prepare
from headrace_server.workers.placement import (
    InstanceGroup,
    available_cores,
    cores_to_pin,
    instance_groups,
)
from headrace_server.workers.process_executor import ProcessExecutor

GRACE_S = 1.0
"""What answers may take on their way out, once nothing runs any more."""

COLLECTION_DELAY_S = 1.0
"""Until then whoever still held a deployment that has ended has let go of it."""

log = logging.getLogger("headrace.app")


class _Collection(Observer):
    """Frees what an ended deployment leaves: objects that refer to each other, which under these
    thresholds might lie about for hours. All but the deployments is frozen, so this is quick."""

    def deployment_removed(self, deployment: Deployment) -> None:
        asyncio.get_running_loop().call_later(COLLECTION_DELAY_S, gc.collect)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a running server listens, as host:port, and where to scrape it; `http` and its address
    are empty where nothing is served over HTTP."""

    grpc: str
    metrics: str
    metrics_url: str
    http: str = ""
    http_url: str = ""


class Server:
    """One server over one repository: `start`, then `drain`, `stop` or `kill`.

    Raises:
        RepositoryError, CertificateError, TokensError: what the configuration names cannot be used.
    """

    def __init__(
        self, repository: Path, config: ServerConfig, observers: Sequence[Observer] = ()
    ) -> None:
        release = version("headrace")
        self._config = config
        self._entries = _to_load(scan(repository), config)
        self._statistics = Statistics(time.time)
        self._metrics = PrometheusMetrics(release)
        self._last_minute = LastMinute()
        self._health = HealthReporter()
        self._clock = LoopClock()
        cores = available_cores()
        self._front_count = config.front_count(cores)
        self._fronts: FrontFleet | None = None
        if self._front_count > 1:
            self._fronts = FrontFleet(self._front_count, self._front_settings, self._clock)
        self._gateway = None if config.http_port is None else Gateway(self._gateway_settings)
        self.engine = Engine(
            ObserverGroup(
                self._statistics,
                self._metrics,
                self._last_minute,
                self._health,
                _Collection(),
                *(() if self._fronts is None else (self._fronts,)),
                *observers,
            )
        )
        self.engine.starting = True
        self._health.watch(self.engine)
        self._probes = Probes(self.engine)
        self._tls = certificates_of(config.tls_cert, config.tls_key, config.tls_client_ca)
        gpus = gpu_metrics()
        self._endpoint = MetricsEndpoint(
            *(self._metrics, *([] if gpus is None else [gpus])),
            tls=None if self._tls is None else self._tls.context,
            probe=self._probes.answer,
        )
        budget = config.cores or max(1, cores - own_cores(self._front_count))
        pins = cores_to_pin(budget) if config.pin_cores else ()
        # Dealt out to one model after the other, also to those that are loaded later.
        self._pins = cycle(pins)
        self._control = ModelControl(
            repository,
            config.model_control_mode,
            self.engine,
            self._deployment,
            budget,
        )
        self._watching: asyncio.Task[None] | None = None
        self._giving_back: asyncio.Task[None] | None = None
        self._gate: Gate | None = None
        if config.tokens:
            tokens = TokensFile(Path(config.tokens), time.monotonic)
            self._gate = Gate(
                *(tokens.tenants, self.engine, time.monotonic),
                max_span_bytes=config.max_message_bytes if config.allow_client_shm else 0,
            )
        self._release = release
        self._grpc: GrpcServer | None = None

    async def start(self) -> Addresses:
        """Listen, load every model, and return when each is ready or known to be broken.

        Raises:
            PortUnavailableError, MetricsPortError: an address cannot be listened on.
        GatewayError: nor can that for HTTP, or it cannot be served.
        """
        keep_one_heap()
        prepare()
        self._grpc = GrpcServer(
            InferenceService(
                self.engine,
                self._statistics,
                self._config_of,
                self._release,
                gate=self._gate,
                control=self._control,
                regions=RegionTable() if self._config.allow_client_shm else None,
                max_span_bytes=self._config.max_message_bytes,
            ),
            ExplanationService(self.engine, self._last_minute, self._clock.now, self._gate),
            self._health,
            limits=RpcLimits(
                self._config.max_message_bytes,
                self._config.max_connections,
                compressed=self._config.compression == "accept",
            ),
            tls=self._tls,
            gate=self._gate,
        )
        host = self._config.host
        # An IPv6 address stands in brackets where a port follows.
        shown = f"[{host}]" if ":" in host else host
        private: Path | None = None
        http_port = 0
        if self._fronts is None:
            grpc_port = await self._grpc.start(shown, self._config.grpc_port)
        else:
            grpc_port, private = self._fronts.prepare(self.engine, host, self._config.grpc_port)
        if self._gateway is not None:
            http_port, private = self._gateway.prepare(host, self._config.http_port or 0, private)
        if private is not None:
            await self._grpc.start_privately(private)
        if self._fronts is not None:
            await self._fronts.start()
        if self._gateway is not None:
            await self._gateway.start()
        self._probes.open()
        metrics_port = self._endpoint.start(host, self._config.metrics_port)
        # Before the models come: they may go, and what is frozen is never freed where it refers to
        # itself.
        settle_objects()
        log.info("loading the models of %d directories", len(self._entries))
        await self._control.start(self._entries)
        self._health.refresh()
        if self._config.model_control_mode == "poll":
            every_s = self._config.repository_poll_s
            watching = self._control.watch(asyncio.sleep, every_s)
            self._watching = asyncio.create_task(watching)
        self._giving_back = asyncio.create_task(give_back_freed())
        scheme, metrics = self._endpoint.scheme, f"{shown}:{metrics_port}"
        http = f"{shown}:{http_port}" if http_port else ""
        return Addresses(
            f"{shown}:{grpc_port}",
            metrics,
            f"{scheme}://{metrics}/metrics",
            http,
            f"{scheme}://{http}" if http else "",
        )

    async def drain(self) -> None:
        """Be not ready, serve on for the drain delay, then `stop`."""
        self.engine.withdraw()
        self._health.refresh()
        if self._config.drain_delay_s:
            log.info("not ready any more, serving for %g s", self._config.drain_delay_s)
            await asyncio.sleep(self._config.drain_delay_s)
        log.info("stopping: finishing what was admitted")
        await self.stop()
        log.info("stopped")

    async def stop(self) -> None:
        """Refuse new work, finish the admitted one within the drain timeout, end everything."""
        self.engine.stopping = True
        self._health.refresh()
        if self._fronts is not None:
            self._fronts.refresh()
        for task in (self._watching, self._giving_back):
            if task is not None:
                task.cancel()
        await self._control.stop()
        if not await self.engine.drain(self._config.drain_timeout_s):
            log.warning("requests were left after %s s", self._config.drain_timeout_s)
        if self._gateway is not None:
            await self._gateway.stop()
        if self._fronts is not None:
            await self._fronts.stop(GRACE_S)
        if self._grpc is not None:
            await self._grpc.stop(GRACE_S)
        await self.engine.stop()
        await asyncio.to_thread(self._endpoint.stop)

    def kill(self) -> None:
        """End every process at once, whatever it does; nothing is finished."""
        self.engine.kill()
        if self._gateway is not None:
            self._gateway.kill()
        if self._fronts is not None:
            self._fronts.kill()

    def _deployment(self, entry: ModelEntry, source: ModelSource, cores: int) -> Deployment:
        return deployment_of(
            entry,
            source,
            self._config,
            cores=cores,
            pins=tuple(sorted({*islice(self._pins, cores)})),
            clock=self._clock,
            observer=self.engine.observer,
        )

    def _config_of(self, deployment: Deployment) -> ModelConfig:
        return complete_config(deployment.spec, self._control.config_of(deployment))

    def _front_settings(self, index: int, address: str, passed_on: str) -> FrontSettings:
        config, count = self._config, self._front_count
        return FrontSettings(
            index=index,
            address=address,
            passed_on=passed_on,
            max_message_bytes=config.max_message_bytes,
            max_connections=-(-config.max_connections // count),
            compressed=config.compression == "accept",
            unread_bytes=MAX_UNREAD_BYTES // count,
            tls_cert=config.tls_cert,
            tls_key=config.tls_key,
            tls_client_ca=config.tls_client_ca,
            tokens=config.tokens,
            log_format=config.log_format,
            log_level=config.log_level,
        )

    def _gateway_settings(self, asks: str, listeners: tuple[int, ...]) -> GatewaySettings:
        config = self._config
        return GatewaySettings(
            asks=asks,
            listeners=listeners,
            max_body_bytes=config.max_message_bytes,
            max_connections=config.max_connections,
            compressed=config.compression == "accept",
            tls_cert=config.tls_cert,
            tls_key=config.tls_key,
            tls_client_ca=config.tls_client_ca,
            tokens=config.tokens,
            grace_s=GRACE_S,
            log_format=config.log_format,
            log_level=config.log_level,
        )


def _to_load(entries: list[ModelEntry], config: ServerConfig) -> list[ModelEntry]:
    """The models to load at the start. Raises RepositoryError for a name that none has."""
    if config.model_control_mode != "explicit":
        return entries
    wanted = config.load_models
    missing = wanted - {entry.name for entry in entries} - {"*"}
    if missing:
        raise RepositoryError(
            f"--load-model names {', '.join(sorted(missing))}; the repository holds "
            f"{', '.join(entry.name for entry in entries) or 'no models'}"
        )
    return [entry for entry in entries if "*" in wanted or entry.name in wanted]


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

    def preparation(rules: SchedulingRules, observer: Observer) -> Deployment:
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
            observer,
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
