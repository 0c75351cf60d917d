"""The server's settings: the only reader of environment, TOML file and command-line values.

Command line over environment over file over default. An unknown key is an error.
"""

from __future__ import annotations

import difflib
import os
import sys
import tomllib
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec

ENVIRONMENT_PREFIX = "HEADRACE_"

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
MessageBytes = Annotated[int, msgspec.Meta(ge=1, le=(1 << 31) - 1)]
"""gRPC counts them in 32 bits."""
Milliseconds = Annotated[float, msgspec.Meta(gt=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
LongEnough = Annotated[float, msgspec.Meta(gt=0)]
Compression = Literal["refuse", "accept"]
ModelControlMode = Literal["none", "poll", "explicit"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_CHOICES = {
    "compression": get_args(Compression),
    "model_control_mode": get_args(ModelControlMode),
    "log_format": get_args(LogFormat),
    "log_level": get_args(LogLevel),
}


class ConfigurationError(Exception):
    """A setting cannot be used; the text is one line and says where it came from."""


class ServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that can be set about a server. Port 0 takes a free port.

    `http_port`: by default nothing but gRPC is served.
    `tls_cert` and `tls_key` (PEM files) secure all ports; with `tls_client_ca` clients must show a
    certificate that it signed. `tokens`: TOML file that says who may do what; empty lets everybody
    do everything. `max_message_bytes`: of one request. `compression`: whether compressed requests
    are taken, which gRPC unpacks whole before any limit counts. `allow_pickle`: names of the
    models, separated by commas, that may load pickled Python objects, which is to run code.
    `allow_client_shm`: whether clients may name shared memory of this machine for tensors.
    `fronts`: processes that accept connections; by default chosen by `default_fronts`.
    `max_queue_requests` and `max_queue_bytes` bound the queue of each model. `cores`: CPU cores
    that the workers of all models share; by default all but those of `own_cores`.
    `pin_cores`: whether each CPU worker runs on cores of its own alone (Linux).
    `objective_ms`: milliseconds that a request may take which brings no deadline of its own, where
    neither the model's configuration says otherwise nor fixed rules are asked for.
    `model_control_mode`: what is loaded after the start: nothing, what changes in the repository
    (looked at every `repository_poll_s` seconds), or what clients ask for; only then, `load_model`
    names the models, separated by commas, that are loaded at the start, `*` means all.
    `drain_delay_s`: how long a server that is told to stop says that it is not ready, and serves.
    `load_timeout_s`: a worker that has not loaded and warmed up its model by then is ended.
    `cache_dir`: what is measured of models is kept there; empty or "none" keeps nothing.
    """

    host: str = "127.0.0.1"
    grpc_port: Port = 8001
    http_port: Port | None = None
    metrics_port: Port = 8002
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    tokens: str = ""
    max_message_bytes: MessageBytes = 256 << 20
    max_connections: Positive = 4_096
    fronts: Positive | None = None
    compression: Compression = "refuse"
    allow_pickle: str = ""
    model_control_mode: ModelControlMode = "none"
    load_model: str = ""
    repository_poll_s: LongEnough = 15.0
    drain_delay_s: Seconds = 0.0
    allow_client_shm: bool = False
    drain_timeout_s: Seconds = 30.0
    load_timeout_s: LongEnough = 900.0
    max_queue_requests: Positive = 16_384
    max_queue_bytes: Positive = 1 << 30
    objective_ms: Milliseconds | None = None
    cores: Positive | None = None
    pin_cores: bool = False
    cache_dir: str = ""
    log_format: LogFormat = "text"
    log_level: LogLevel = "info"

    def front_count(self, cores: int) -> int:
        """`fronts`, or what is chosen on so many cores where nobody says."""
        if self.fronts is not None:
            return self.fronts
        return 1 if self.allow_client_shm else default_fronts(cores)

    @property
    def pickle_models(self) -> frozenset[str]:
        """The names in `allow_pickle`."""
        return _names(self.allow_pickle)

    @property
    def load_models(self) -> frozenset[str]:
        """The names in `load_model`."""
        return _names(self.load_model)

    @property
    def cache_path(self) -> Path | None:
        """The directory of `cache_dir`, if there is to be one."""
        if self.cache_dir in ("", "none"):
            return None
        return Path(os.path.abspath(os.path.expanduser(self.cache_dir)))


def _names(listed: str) -> frozenset[str]:
    return frozenset(name.strip() for name in listed.split(",") if name.strip())


def load_config(
    arguments: Mapping[str, Any], environment: Mapping[str, str], file: Path | None = None
) -> ServerConfig:
    """Settings from all sources.

    Args:
        arguments: values given on the command line, by field name; None means not given.
        environment: the process environment; `HEADRACE_GRPC_PORT` sets `grpc_port`. Where nothing
            sets `cache_dir`, `XDG_CACHE_HOME` or `HOME` do; without either nothing is kept.
        file: a TOML file with the field names as keys, if any.

    Raises:
        ConfigurationError: an unknown key, a value of the wrong type or range, or a file that
            cannot be read.
    """
    layers: list[tuple[str, Callable[[str], str], Mapping[str, Any]]] = []
    if file is not None:
        layers.append((f"file {file}", str, _read(file)))
    variables = {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(ENVIRONMENT_PREFIX)
    }
    layers.append(("environment", variable_of, variables))
    given = {name: value for name, value in arguments.items() if value is not None}
    layers.append(("command line", flag_of, given))
    merged: dict[str, Any] = {}
    for source, spelled, values in layers:
        for key, value in values.items():
            _check(source, spelled, key, value)
            merged[key] = value
    merged.setdefault("cache_dir", _user_cache(environment))
    config = msgspec.convert(merged, ServerConfig, strict=False)
    for given_file, needed in (
        ("tls_cert", "tls_key"),
        ("tls_key", "tls_cert"),
        ("tls_client_ca", "tls_cert"),
    ):
        if getattr(config, given_file) and not getattr(config, needed):
            raise ConfigurationError(f"'{flag_of(given_file)}' needs '{flag_of(needed)}' beside it")
    exposed = not is_loopback(config.host)
    if config.model_control_mode == "explicit" and exposed and not config.tokens:
        raise ConfigurationError(
            f"'--model-control-mode explicit' on {config.host}, which other machines reach, needs "
            "'--tokens': with it tenants who are admins load and unload models, without it anybody"
        )
    if config.load_model and config.model_control_mode != "explicit":
        raise ConfigurationError(
            "'--load-model' needs '--model-control-mode explicit': otherwise all models are loaded"
        )
    if config.fronts is not None and config.fronts > 1:
        if config.allow_client_shm:
            raise ConfigurationError(
                f"'--allow-client-shm' needs '--fronts 1', got {config.fronts}: a client shares "
                "its memory with one process, and its calls may come in by any"
            )
        if sys.platform != "linux":
            raise ConfigurationError(
                f"'--fronts {config.fronts}' needs Linux: others do not spread connections"
            )
    if config.pin_cores and not hasattr(os, "sched_setaffinity"):
        raise ConfigurationError(f"'{flag_of('pin_cores')}' needs Linux: others do not pin")
    return config


def default_fronts(cores: int) -> int:
    """How many processes accept connections where nobody says: one for every eight cores, four at
    most. Below sixteen cores that is one, the engine's own.

    A small request costs a front some 250 us of CPU (HTTP/2, reading, checking, writing) and the
    engine's process 80 (docs/bench-fronts.json), so beyond four fronts that one is the limit. Every
    core that a front takes is none for models on a CPU, and only models that answer thousands of
    requests per second keep one process busy with accepting.
    """
    return max(1, min(4, cores // 8)) if sys.platform == "linux" else 1


def own_cores(fronts: int) -> int:
    """Cores that are left to the server itself: one for each of its processes."""
    return 1 if fronts == 1 else 1 + fronts


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`; False for names other than localhost."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def variable_of(field: str) -> str:
    """The environment variable that sets a field."""
    return ENVIRONMENT_PREFIX + field.upper()


def flag_of(field: str) -> str:
    """The command-line flag that sets a field."""
    return "--" + field.removesuffix("_s").replace("_", "-")


def _user_cache(environment: Mapping[str, str]) -> str:
    """`headrace` in the user's cache directory, as the XDG base directory specification has it."""
    caches = environment.get("XDG_CACHE_HOME", "")
    if os.path.isabs(caches):
        return os.path.join(caches, "headrace")
    home = environment.get("HOME", "")
    return os.path.join(home, ".cache", "headrace") if os.path.isabs(home) else ""


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} is not valid TOML: {error}") from None


def _check(source: str, spelled: Callable[[str], str], key: str, value: object) -> None:
    """Each value alone, so that the error can name where it came from."""
    fields = ServerConfig.__struct_fields__
    if key not in fields:
        close = difflib.get_close_matches(key, fields, n=1)
        hint = (
            f"did you mean '{spelled(close[0])}'?"
            if close
            else f"known are {', '.join(map(spelled, fields))}"
        )
        raise ConfigurationError(f"{source}: unknown setting '{spelled(key)}'; {hint}")
    try:
        msgspec.convert({key: value}, ServerConfig, strict=False)
    except msgspec.ValidationError as error:
        problem = str(error).split(" - at ")[0]
        choices = _CHOICES.get(key)
        if choices is not None:
            problem = f"Expected one of {', '.join(choices)}"
        raise ConfigurationError(f"{source}: '{spelled(key)}' = {value!r}: {problem}") from None
