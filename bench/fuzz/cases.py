"""What is sent in a fuzz, as plain data: it is written down when it breaks something."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import msgspec

Metadata: TypeAlias = tuple[tuple[str, str], ...]


class Unary(msgspec.Struct, frozen=True, tag=True):
    """One call of any method. `timeout_s` travels as its deadline; the call is cancelled
    `cancel_after_s` after it was sent, unless that is None."""

    method: str
    body: bytes
    metadata: Metadata = ()
    timeout_s: float | None = None
    cancel_after_s: float | None = None

    @property
    def requests(self) -> int:
        """How many requests this is."""
        return 1


class Stream(msgspec.Struct, frozen=True, tag=True):
    """One call of ModelStreamInfer; cancelled after so many answers, unless that is None."""

    bodies: tuple[bytes, ...]
    metadata: Metadata = ()
    timeout_s: float | None = None
    cancel_after: int | None = None

    @property
    def requests(self) -> int:
        """How many requests this is."""
        return len(self.bodies)


class Socket(msgspec.Struct, frozen=True, tag=True):
    """Bytes on a connection of its own. `abrupt`: it is then broken off instead of closed."""

    data: bytes
    abrupt: bool = False

    @property
    def requests(self) -> int:
        """How many requests this is."""
        return 1


Case: TypeAlias = Unary | Stream | Socket


def write_cases(path: Path, cases: list[Case]) -> None:
    """Write cases for `read_cases`: JSON, bytes as base64."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(cases), indent=1) + b"\n")


def read_cases(path: Path) -> list[Case]:
    """The cases of a file.

    Raises:
        msgspec.MsgspecError: it holds none.
    """
    return msgspec.json.decode(path.read_bytes(), type=list[Case])
