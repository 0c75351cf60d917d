"""Makes real certificates with the openssl command, for tests of TLS."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    cert: Path
    key: Path

    def move_to(self, other: Pair) -> None:
        """Take the other's place, as a renewal does: one file after the other."""
        os.replace(self.cert, other.cert)
        os.replace(self.key, other.key)


def self_signed(directory: Path, name: str) -> Pair:
    """A certificate for 127.0.0.1 that is its own authority."""
    pair = Pair(directory / f"{name}.crt", directory / f"{name}.key")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "1", "-subj", f"/CN={name}"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
            *("-keyout", str(pair.key), "-out", str(pair.cert)),
        ],
        check=True,
        capture_output=True,
    )
    return pair
