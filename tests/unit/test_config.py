"""Settings: which source wins, and how a bad one is refused."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from headrace_server.config import ConfigurationError, ServerConfig, load_config, own_cores


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    return tmp_path / "headrace.toml"


def refusal(
    arguments: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> str:
    with pytest.raises(ConfigurationError) as refused:
        load_config(arguments or {}, environment or {}, file)
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_without_any_source_the_defaults_hold() -> None:
    assert load_config({}, {}) == ServerConfig()


def test_command_line_goes_before_environment_before_file_before_default(
    settings_file: Path,
) -> None:
    settings_file.write_text('host = "10.0.0.1"\ngrpc_port = 1\nmetrics_port = 1\n')
    config = load_config(
        {"host": None, "grpc_port": 3, "metrics_port": None},
        {"HEADRACE_GRPC_PORT": "2", "HEADRACE_METRICS_PORT": "2"},
        settings_file,
    )
    assert (config.grpc_port, config.metrics_port, config.host) == (3, 2, "10.0.0.1")
    assert config.drain_timeout_s == ServerConfig().drain_timeout_s


def test_every_setting_can_come_from_the_environment() -> None:
    environment = {
        "HEADRACE_HOST": "::1",
        "HEADRACE_GRPC_PORT": "1",
        "HEADRACE_HTTP_PORT": "0",
        "HEADRACE_METRICS_PORT": "2",
        "HEADRACE_TLS_CERT": "c",
        "HEADRACE_TLS_KEY": "k",
        "HEADRACE_TLS_CLIENT_CA": "a",
        "HEADRACE_TOKENS": "t",
        "HEADRACE_MAX_MESSAGE_BYTES": "6",
        "HEADRACE_MAX_CONNECTIONS": "7",
        "HEADRACE_FRONTS": "1",
        "HEADRACE_COMPRESSION": "accept",
        "HEADRACE_ALLOW_PICKLE": "m, n",
        "HEADRACE_MODEL_CONTROL_MODE": "explicit",
        "HEADRACE_LOAD_MODEL": "m, n",
        "HEADRACE_REPOSITORY_POLL_S": "3",
        "HEADRACE_DRAIN_DELAY_S": "2.5",
        "HEADRACE_ALLOW_CLIENT_SHM": "true",
        "HEADRACE_DRAIN_TIMEOUT_S": "0.5",
        "HEADRACE_LOAD_TIMEOUT_S": "60",
        "HEADRACE_MAX_QUEUE_REQUESTS": "3",
        "HEADRACE_MAX_QUEUE_BYTES": "4",
        "HEADRACE_OBJECTIVE_MS": "4.5",
        "HEADRACE_CORES": "5",
        "HEADRACE_PIN_CORES": "true",
        "HEADRACE_CACHE_DIR": "/c",
        "HEADRACE_LOG_FORMAT": "json",
        "HEADRACE_LOG_LEVEL": "debug",
    }
    assert len(environment) == len(ServerConfig.__struct_fields__)
    assert load_config({}, environment) == ServerConfig(
        host="::1",
        grpc_port=1,
        http_port=0,
        metrics_port=2,
        tls_cert="c",
        tls_key="k",
        tls_client_ca="a",
        tokens="t",
        max_message_bytes=6,
        max_connections=7,
        fronts=1,
        compression="accept",
        allow_pickle="m, n",
        model_control_mode="explicit",
        load_model="m, n",
        repository_poll_s=3.0,
        drain_delay_s=2.5,
        allow_client_shm=True,
        drain_timeout_s=0.5,
        load_timeout_s=60.0,
        max_queue_requests=3,
        max_queue_bytes=4,
        objective_ms=4.5,
        cores=5,
        pin_cores=True,
        cache_dir="/c",
        log_format="json",
        log_level="debug",
    )


@pytest.mark.skipif(sys.platform != "linux", reason="several fronts need Linux")
def test_fronts_are_as_many_as_cores_can_spare_unless_somebody_says() -> None:
    chosen = {cores: ServerConfig().front_count(cores) for cores in (1, 2, 8, 15, 16, 24, 32, 96)}
    assert chosen == {1: 1, 2: 1, 8: 1, 15: 1, 16: 2, 24: 3, 32: 4, 96: 4}
    assert [own_cores(fronts) for fronts in (1, 2, 4)] == [1, 3, 5]
    assert load_config({"fronts": 3}, {}).front_count(2) == 3
    assert load_config({"allow_client_shm": True}, {}).front_count(96) == 1
    text = refusal({"fronts": 2, "allow_client_shm": True})
    assert "'--allow-client-shm' needs '--fronts 1', got 2" in text
    assert refusal({"fronts": 0}).startswith("command line: '--fronts' = 0")


def test_other_environment_variables_are_none_of_its_business() -> None:
    assert load_config({}, {"PATH": "/bin", "OTHER_GRPC_PORT": "x"}) == ServerConfig()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("grpc_port", 65_536),
        ("grpc_port", -1),
        ("grpc_port", "gRPC"),
        ("metrics_port", 80.5),
        ("drain_timeout_s", -0.1),
        ("load_timeout_s", 0),
        ("drain_timeout_s", "nan"),
        ("max_queue_requests", 0),
        ("max_queue_bytes", 0),
        ("max_message_bytes", 0),
        ("max_message_bytes", 1 << 31),
        ("max_connections", 0),
        ("compression", "gzip"),
        ("objective_ms", 0),
        ("objective_ms", "nan"),
        ("cores", 0),
        ("host", 127),
        ("log_format", "xml"),
        ("log_level", "loud"),
    ],
)
def test_a_value_of_wrong_type_or_range_is_refused_with_the_value(field: str, value: Any) -> None:
    assert repr(value) in refusal({field: value})


def test_a_refusal_names_the_source_and_the_setting_as_that_source_spells_it(
    settings_file: Path,
) -> None:
    settings_file.write_text("grpc_port = 99999")
    assert f"file {settings_file}: 'grpc_port' = 99999" in refusal(file=settings_file)
    assert "environment: 'HEADRACE_GRPC_PORT' = '99999'" in refusal(
        environment={"HEADRACE_GRPC_PORT": "99999"}
    )
    assert "command line: '--drain-timeout' = -1.0" in refusal({"drain_timeout_s": -1.0})


def test_a_bad_value_is_refused_even_where_another_source_overrides_it(
    settings_file: Path,
) -> None:
    settings_file.write_text('grpc_port = "http"')
    assert "file" in refusal({"grpc_port": 8001}, file=settings_file)


@pytest.mark.parametrize("alone", ["tls_cert", "tls_key", "tls_client_ca"])
def test_half_of_a_certificate_is_refused_with_the_other_half(alone: str) -> None:
    text = refusal({alone: "file"})
    assert f"'--{alone.replace('_', '-')}' needs '--tls-" in text


def test_models_that_may_unpickle_are_named_one_by_one() -> None:
    assert load_config({"allow_pickle": "a, b,"}, {}).pickle_models == {"a", "b"}
    assert load_config({}, {}).pickle_models == frozenset()


def test_a_refused_choice_lists_the_choices() -> None:
    assert "text, json" in refusal({"log_format": "xml"})


def test_an_unknown_key_is_refused_with_the_closest_known_one(settings_file: Path) -> None:
    settings_file.write_text("grcp_port = 1")
    assert "unknown setting 'grcp_port'; did you mean 'grpc_port'?" in refusal(file=settings_file)
    assert "did you mean 'HEADRACE_GRPC_PORT'?" in refusal(environment={"HEADRACE_GRCP_PORT": "1"})


def test_an_unknown_key_like_no_other_is_refused_with_all_known_ones() -> None:
    text = refusal(environment={"HEADRACE_XYZZY": "1"})
    assert all(f"HEADRACE_{field.upper()}" in text for field in ServerConfig.__struct_fields__)


def test_a_file_that_is_no_toml_is_refused_with_the_place(settings_file: Path) -> None:
    settings_file.write_text('host = "a"\ngrpc_port = = 1\n')
    text = refusal(file=settings_file)
    assert str(settings_file) in text
    assert "line 2" in text


def test_a_file_that_is_no_text_is_refused(settings_file: Path) -> None:
    settings_file.write_bytes(b"\xff\xfe\x00")
    assert f"{settings_file} is not valid TOML" in refusal(file=settings_file)


def test_a_file_that_is_not_there_is_refused(settings_file: Path) -> None:
    assert f"cannot read {settings_file}: No such file" in refusal(file=settings_file)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/headrace"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/headrace"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/headrace"),
        ({"HEADRACE_CACHE_DIR": "/mine", "HOME": "/h"}, "/mine"),
        ({"HEADRACE_CACHE_DIR": "", "HOME": "/h"}, None),
        ({"HEADRACE_CACHE_DIR": "none", "HOME": "/h"}, None),
        ({}, None),
    ],
)
def test_the_cache_is_the_users_own_unless_another_or_none_is_asked_for(
    environment: dict[str, str], expected: str | None
) -> None:
    assert load_config({}, environment).cache_path == (Path(expected) if expected else None)


def test_the_cache_directory_may_be_relative_or_in_the_users_home() -> None:
    assert load_config({"cache_dir": "here"}, {}).cache_path == Path.cwd() / "here"
    assert load_config({"cache_dir": "~/there"}, {}).cache_path == Path.home() / "there"


def test_whoever_is_not_known_loads_no_models_from_other_machines() -> None:
    explicit = {"model_control_mode": "explicit"}
    assert load_config(explicit, {}).model_control_mode == "explicit"
    known = load_config({**explicit, "host": "0.0.0.0", "tokens": "tokens.toml"}, {})
    assert known.tokens
    with pytest.raises(ConfigurationError, match=r"on 0\.0\.0\.0, which other machines reach"):
        load_config({**explicit, "host": "0.0.0.0"}, {})


def test_models_are_named_for_the_start_only_where_not_all_are_loaded() -> None:
    config = load_config({"model_control_mode": "explicit", "load_model": "a, b"}, {})
    assert config.load_models == {"a", "b"}
    with pytest.raises(ConfigurationError, match="'--load-model' needs '--model-control-mode"):
        load_config({"load_model": "a"}, {})


def test_pinning_is_refused_where_the_system_does_not_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_setaffinity", raising=False)
    assert "'--pin-cores' needs Linux" in refusal({"pin_cores": True})
    assert not load_config({"pin_cores": False}, {}).pin_cores
