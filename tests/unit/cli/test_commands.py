"""The surface of the command line: what can be set, and what is said when something is missing."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import typer

from headrace_server.cli import commands
from headrace_server.cli.errors import CommandError, require_server_extra
from headrace_server.cli.streams import standard_streams
from headrace_server.cli.summary import sample_command
from headrace_server.config import ServerConfig, flag_of, is_loopback, variable_of
from headrace_server.models.spec import ModelSpec, TensorSpec

TEXT = TensorSpec("text", "BYTES", [1])
IMAGE = TensorSpec("image", "FP32", [28, 28])


def spec(*inputs: TensorSpec) -> ModelSpec:
    return ModelSpec("m", 1, "python", 8, inputs, (TensorSpec("y", "FP32", [1]),))


def test_every_setting_has_a_documented_flag_and_variable() -> None:
    root: Any = typer.main.get_command(commands.app)
    options = {flag: option for option in root.commands["serve"].params for flag in option.opts}
    for field in ServerConfig.__struct_fields__:
        option = options[flag_of(field)]
        assert option.default is None
        assert variable_of(field) in option.help


def test_a_missing_extra_is_one_line_that_says_what_to_install() -> None:
    with pytest.raises(CommandError) as missing:
        require_server_extra("serve", modules=("json", "no_such_module_anywhere"))
    assert str(missing.value) == (
        "headrace serve needs the server extra (there is no module 'no_such_module_anywhere'): "
        "pip install 'headrace[server]'"
    )
    assert missing.value.status == 1


@pytest.mark.parametrize(
    "words",
    [("infer", "m", "1"), ("models",), ("load", "m"), ("unload", "m"), ("explain", "m")],
)
@pytest.mark.parametrize("seconds", ["inf", "nan", "0", "-1"])
def test_a_timeout_that_is_none_is_one_line(words: tuple[str, ...], seconds: str) -> None:
    root: Any = typer.main.get_command(commands.app)
    with pytest.raises(CommandError, match=r"expected --timeout from 0\.001 to") as refused:
        root.main([*words, "--timeout", seconds], standalone_mode=False)
    assert refused.value.status == 2


def test_another_file_that_finds_no_room_is_not_taken_for_standard_output() -> None:
    with pytest.raises(OSError, match="'/tmp/other'"), standard_streams():
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/other")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.4", False),
        ("example.org", False),
    ],
)
def test_only_loopback_hosts_need_no_warning(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("inputs", "address", "expected"),
    [
        ((TEXT,), "127.0.0.1:8001", "headrace infer m 'some text'"),
        ((IMAGE,), "127.0.0.1:8001", "headrace infer m --zeros"),
        ((TEXT, IMAGE), "127.0.0.1:8001", "headrace infer m --zeros"),
        ((IMAGE,), "0.0.0.0:8001", "headrace infer m --zeros"),
        ((IMAGE,), "[::]:9000", "headrace infer m --zeros --address 127.0.0.1:9000"),
        ((IMAGE,), "10.0.0.1:8001", "headrace infer m --zeros --address 10.0.0.1:8001"),
    ],
)
def test_the_suggested_command_fits_the_model_and_the_address(
    inputs: tuple[TensorSpec, ...], address: str, expected: str
) -> None:
    assert sample_command(spec(*inputs), address) == expected
