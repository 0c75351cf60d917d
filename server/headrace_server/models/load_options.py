"""Reads the parameters `compile` and `precision`: how a worker is to run its model.

Front-safe: standard library and protobuf only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.models.config_text import Locate, locate_nowhere
from headrace_server.models.errors import ConfigError

COMPILE = "compile"
PRECISION = "precision"

NO = "false"
MODES = {"true": "default", "default": "default", "max-autotune": "max-autotune-no-cudagraphs"}
"""What may be written, and torch's name for it. CUDA graphs need inputs that lie still."""

INSTRUCTIONS = {
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "int8": ("avx512_vnni", "avx_vnni", "amx_int8", "i8mm", "asimddp"),
}
"""For each precision the CPU flags, x86 and ARM, of which one makes it worth its while."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """``compile`` is one of torch's modes, ``precision`` a key of `INSTRUCTIONS`; empty: not asked
    for. At most one of them is."""

    compile: str = ""
    precision: str = ""

    def __bool__(self) -> bool:
        return bool(self.compile or self.precision)

    def __str__(self) -> str:
        return f"compile {self.compile}" if self.compile else f"precision {self.precision}"


def load_options(config: ModelConfig | None, locate: Locate = locate_nowhere) -> LoadOptions:
    """What a configuration asks for.

    Raises:
        ConfigError: a value that is none, or both at once.
    """
    if config is None:
        return LoadOptions()

    def value(name: str) -> str:
        return config.parameters[name].string_value if name in config.parameters else NO

    def refuse(name: str, message: str) -> NoReturn:
        where = locate(f'parameters["{name}"]')
        raise ConfigError(f"{where} {message}")

    mode, precision = value(COMPILE), value(PRECISION)
    if mode != NO and mode not in MODES:
        refuse(COMPILE, f"must be one of {_listed([*MODES, NO])}, got '{mode}'")
    if precision != NO and precision not in INSTRUCTIONS:
        refuse(PRECISION, f"must be one of {_listed([*INSTRUCTIONS])}, got '{precision}'")
    if mode != NO and precision != NO:
        # A compiled bf16 encoder was between 1.4 times as slow and 1.4 times as fast as one that
        # is not compiled, and its packed int8 weights are nothing that the compiler takes.
        refuse(PRECISION, f"is not for a model with '{COMPILE}'; drop one")
    return LoadOptions(MODES.get(mode, ""), precision if precision != NO else "")


def without_options(config: ModelConfig) -> ModelConfig:
    """The same configuration of a model that runs as it is."""
    plain = ModelConfig()
    plain.CopyFrom(config)
    for name in (COMPILE, PRECISION):
        if name in plain.parameters:
            del plain.parameters[name]
    return plain


def slow_here(precision: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What an operator should know of a CPU that lacks the instructions for a precision; empty
    where it has them, or where the kernel does not tell (outside Linux)."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return ""
    flags: set[str] = set()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            flags.update(value.split())
    wanted = INSTRUCTIONS[precision]
    if flags.intersection(wanted):
        return ""
    return f"this CPU has none of {', '.join(wanted)}, so expect it to be slower, not faster"


def _listed(values: list[str]) -> str:
    return ", ".join(f"'{value}'" for value in values)
